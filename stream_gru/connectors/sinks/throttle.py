"""Fewer outputs for a sink: one of each stream in each interval, or those where something changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from stream_gru.core.commit_records import FlushResult, OutboxState, SinkCheckpoint
from stream_gru.core.keyed_state import KeyedState, decode, encode
from stream_gru.core.protocols import HandsOver, Sink, TracksStreams
from stream_gru.core.types import NS_PER_S, PredictionBatch, ResetReason, SinkHealth

# Class (or set of classes), alarm, trust.
_State = tuple[int | bytes | None, bool | None, bool]


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is stored of a stream: its last output's interval of ``interval_ns``, or its state in mode ``change``."""

    interval_ns: int
    interval: int | None = None
    state: _State | None = None


class _LastOutputs(KeyedState[int | _State]):
    """By stream, what its next output is compared with: an interval of ``interval_ns``, or with 0 a state."""

    def __init__(self, interval_ns: int) -> None:
        super().__init__(_Stored, "a throttle")
        self._interval_ns = interval_ns

    def _dump(self, record: int | _State) -> bytes:
        return encode(_Stored(self._interval_ns, record) if isinstance(record, int) else _Stored(0, None, record))

    def _load(self, key: str, data: bytes) -> int | _State | None:
        stored = decode(data, _Stored, f"a throttle, {key}")
        if stored.interval_ns != self._interval_ns:
            return None
        return stored.interval if self._interval_ns else stored.state


class Throttled:
    """Passes some rows on to ``sink``, independently of how rows are grouped into batches.

    ``interval``  the first output of each stream in each ``interval_s`` of event time, counted from 1970
    ``change``    an output whose class, alarm or trust differs from that of the stream's output before it

    ``state`` holds, for each stream, what its next output is compared with; it is stored, so that a restart passes no
    additional rows.  State of another mode or interval is ignored.

    The first output of a stream and each after a reset (but for those of the windowed regime) always pass.
    """

    def __init__(self, sink: Sink, mode: Literal["interval", "change"], interval_s: float = 60.0) -> None:
        self.sink, self._mode = sink, mode
        self._interval_ns = max(1, round(interval_s * NS_PER_S)) if mode == "interval" else 0
        self.state = _LastOutputs(self._interval_ns)

    def stream_status(self, stream: str, online: bool) -> None:
        """Pass on, where the sink tracks streams."""
        if isinstance(self.sink, TracksStreams):
            self.sink.stream_status(stream, online)

    def handoff(self) -> OutboxState:
        """The unfinished rows of the sink, if it has an outbox."""
        return self.sink.handoff() if isinstance(self.sink, HandsOver) else OutboxState()

    def adopt(self, state: OutboxState) -> None:
        """Pass on, where the sink has an outbox."""
        if isinstance(self.sink, HandsOver):
            self.sink.adopt(state)

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Open the sink."""
        self.sink.open(checkpoint)

    def ready(self) -> bool:
        """Whether the sink is ready."""
        return self.sink.ready()

    def write(self, batch: PredictionBatch) -> None:
        """Write the rows that pass.  Raises what the sink raises."""
        rows, last = self._passing(batch)
        if rows:
            self.sink.write(batch if len(rows) == len(batch) else batch.take(np.array(rows, np.int64)))
        # After the write: a batch that could not be written is written again.
        for name, key in last.items():
            if self.state.get(name) != key:
                self.state.put(name, key)

    def flush(self) -> FlushResult:
        """Flush the sink."""
        return self.sink.flush()

    def committed(self) -> None:
        """Pass on to the sink."""
        self.sink.committed()

    def close(self) -> None:
        """Close the sink."""
        self.sink.close()

    def health(self) -> SinkHealth:
        """The health of the sink."""
        return self.sink.health()

    def _passing(self, batch: PredictionBatch) -> tuple[list[int], dict[str, int | _State]]:
        """Rows that pass, and the state that they leave."""
        keys: Sequence[int | _State] = (
            (batch.time_ns // self._interval_ns).tolist() if self._mode == "interval" else _states(batch)
        )
        always = ((batch.reset != ResetReason.NONE) & (batch.reset != ResetReason.WINDOW)).tolist()
        last: dict[str, int | _State] = {}
        passing = []
        for row, (index, key, passes) in enumerate(zip(batch.stream_index.tolist(), keys, always, strict=True)):
            stream = batch.stream_names[index]
            if passes or last.get(stream, self.state.get(stream)) != key:
                passing.append(row)
                last[stream] = key
        return passing, last


def _states(batch: PredictionBatch) -> list[_State]:
    """Class (or set of classes), alarm and trust of each output."""
    trusted = batch.scorable.tolist()
    alarm = [None] * len(batch) if batch.alarm is None else batch.alarm.tolist()
    return list(zip(_classes(batch), alarm, trusted, strict=True))


def _classes(batch: PredictionBatch) -> Sequence[int | bytes | None]:
    if batch.probabilities is None:
        return [None] * len(batch)
    best = batch.predicted_class.tolist()
    if batch.spec.exclusive:
        return best
    likely = np.packbits(batch.probabilities >= 0.5, axis=1)
    return [row.tobytes() if code >= 0 else None for row, code in zip(likely, best, strict=True)]
