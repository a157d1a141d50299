"""A user's own engine, source, decoder and sink: each fulfils its Protocol without a base class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from stream_gru import (
    Bundle,
    Decoder,
    DropReason,
    EndOfInput,
    Engine,
    FlushResult,
    Pipeline,
    Position,
    PredictionBatch,
    RawMessage,
    Rejected,
    SampleBatch,
    Sink,
    SinkCheckpoint,
    SinkHealth,
    Source,
    SourceHealth,
)

F32 = NDArray[np.float32]
PERIOD_NS = 1_000_000_000


class ConstantEngine:
    """An engine whose outputs are zero and whose state counts the steps."""

    name = "constant"

    def __init__(self, input_size: int, state_size: int, output_size: int) -> None:
        self.input_size, self.state_size, self.output_size = input_size, state_size, output_size

    def initial_state(self, n: int) -> F32:
        """(n, S) zeros."""
        return np.zeros((n, self.state_size), np.float32)

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """(B, I), (B, S) -> (B, K), (B, S)."""
        return np.zeros((len(x), self.output_size), np.float32), h + np.float32(1)

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """(T, I), (S,) -> (T, K), (S,)."""
        return np.zeros((len(x), self.output_size), np.float32), h + np.float32(len(x))


class ListSource:
    """A source that returns the payloads of a list, one per poll."""

    def __init__(self, payloads: Sequence[bytes]) -> None:
        self._payloads, self._next = payloads, 0

    def open(self, position: Position | None) -> None:
        """Continue after ``position``."""
        self._next = 0 if position is None else position.offset

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return the next payload."""
        if self._next == len(self._payloads):
            raise EndOfInput
        self._next += 1
        return [RawMessage(self._payloads[self._next - 1], key="list", position=Position("list", self._next))]

    def commit(self, position: Position) -> None:
        """Nothing to acknowledge."""

    def close(self) -> None:
        """Nothing to close."""

    def health(self) -> SourceHealth:
        """The number of remaining payloads."""
        return SourceHealth(queued=len(self._payloads) - self._next)


class NumberDecoder:
    """A decoder of one number per message, which is the value of all channels."""

    def __init__(self, channels: int) -> None:
        self._channels, self._count = channels, 0

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """One sample per readable message."""
        values: list[float] = []
        rejected: list[Rejected] = []
        for message in raw:
            try:
                values.append(float(message.payload))
            except ValueError:
                rejected.append(Rejected(DropReason.PARSE, message=message))
        times = (self._count + np.arange(len(values), dtype=np.int64)) * PERIOD_NS
        self._count += len(values)
        return SampleBatch(
            stream_names=("numbers",),
            stream_index=np.zeros(len(values), np.int32),
            time_ns=times,
            values=np.repeat(np.array(values, np.float32)[:, None], self._channels, axis=1),
            rejected=tuple(rejected),
        )


class LineSink:
    """A sink that writes one line per output to a text stream."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def open(self, kept: SinkCheckpoint | None) -> None:
        """Nothing to continue."""

    def ready(self) -> bool:
        """Always ready."""
        return True

    def write(self, batch: PredictionBatch) -> None:
        """Write stream and steps of each row."""
        for index, steps in zip(batch.stream_index.tolist(), batch.steps_since_reset.tolist(), strict=True):
            self._out.write(f"{batch.stream_names[index]} {steps}\n")

    def flush(self) -> FlushResult:
        """Nothing for the store."""
        self._out.flush()
        return FlushResult()

    def committed(self) -> None:
        """Nothing waits for a commit."""

    def close(self) -> None:
        """The caller closes the stream."""

    def health(self) -> SinkHealth:
        """Always healthy."""
        return SinkHealth()


def run(bundle: Bundle, payloads: Sequence[bytes], out: TextIO) -> SampleBatch | None:
    """Run the parts through a pipeline; return the last batch of samples."""
    channels = len(bundle.manifest.channels)
    outputs = bundle.manifest.output_size
    engine: Engine = ConstantEngine(bundle.manifest.input_size, bundle.manifest.state_size, outputs)
    source: Source = ListSource(payloads)
    decoder: Decoder = NumberDecoder(channels)
    sink: Sink = LineSink(out)
    pipeline = Pipeline(bundle, engine)
    source.open(None)
    sink.open(None)
    batch = None
    while True:
        try:
            raw = source.poll(100, 0.0)
        except EndOfInput:
            break
        batch = decoder.decode(raw)
        sink.write(pipeline.process(batch))
        sink.flush()
        sink.committed()
    sink.close()
    source.close()
    return batch
