"""Fewer outputs for a sink: one of each stream in each interval, or those where something changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import msgspec
import numpy as np

from stream_gru.connectors.sinks.outbox import Left
from stream_gru.core.commit_records import FlushResult, SinkCheckpoint
from stream_gru.core.keyed_state import DirtySet, decode, encode
from stream_gru.core.protocols import Sink
from stream_gru.core.types import NS_PER_S, PredictionBatch, ResetReason, SinkHealth

# Class (or set of classes), alarm, trust.
_State = tuple[int | bytes | None, bool | None, bool]


class _Memory(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is stored of a stream: its last output's interval of ``interval_ns``, or its state in mode ``change``."""

    interval_ns: int
    interval: int | None = None
    state: _State | None = None


class Throttled:
    """Hands some rows on to ``sink``; nothing depends on how the rows were cut into batches.

    ``interval``  the first output of each stream in each ``interval_s`` of event time, counted from 1970
    ``change``    an output whose class, alarm or trust differs from that of the stream's output before it

    What it compares an output with is remembered by stream and stored with it (`core.protocols.Stateful`), so
    that a restart lets nothing more through; what was stored with another mode or interval does not count.

    The first output of a stream and each after a reset (but for those of the windowed regime) always pass.
    ``withheld`` counts the others.
    """

    def __init__(self, sink: Sink, mode: Literal["interval", "change"], interval_s: float = 60.0) -> None:
        self._sink, self._mode = sink, mode
        self._interval_ns = max(1, round(interval_s * NS_PER_S)) if mode == "interval" else 0
        self._last: dict[str, int | _State] = {}
        self._changes = DirtySet()
        self.withheld = 0

    @property
    def stream_status(self) -> Callable[[str, bool], None]:
        """That of the sink.  Raises AttributeError where it has none."""
        tell: Callable[[str, bool], None] = getattr(self._sink, "stream_status")  # noqa: B009 - it may have none
        return tell

    @property
    def left(self) -> Callable[[], Left]:
        """That of the sink: what it leaves to another one.  Raises AttributeError where it has none."""
        leave: Callable[[], Left] = getattr(self._sink, "left")  # noqa: B009 - it may have none
        return leave

    @property
    def take_over(self) -> Callable[[Left], None]:
        """That of the sink: it takes what another one has left.  Raises AttributeError where it has none."""
        take: Callable[[Left], None] = getattr(self._sink, "take_over")  # noqa: B009 - it may have none
        return take

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Open the sink."""
        self._sink.open(checkpoint)

    def ready(self) -> bool:
        """Whether the sink is."""
        return self._sink.ready()

    def write(self, batch: PredictionBatch) -> None:
        """Write the rows that pass.  Raises what the sink raises."""
        rows, last = self._passing(batch)
        if rows:
            self._sink.write(batch if len(rows) == len(batch) else batch.take(np.array(rows, np.int64)))
        # Only now: a batch that could not be written comes again.
        for name, key in last.items():
            if self._last.get(name) != key:
                self._last[name] = key
                self._changes.add(name)
        self.withheld += len(batch) - len(rows)

    def flush(self) -> FlushResult:
        """Flush the sink."""
        return self._sink.flush()

    def committed(self) -> None:
        """Tell the sink."""
        self._sink.committed()

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()

    def health(self) -> SinkHealth:
        """How the sink is doing."""
        return self._sink.health()

    def dirty_keys(self) -> Collection[str]:
        """Streams with another last output since `mark_clean`."""
        return self._changes.names()

    def mark_clean(self) -> None:
        """What has changed was written down."""
        self._changes.clear()

    def snapshot(self, name: str) -> bytes | None:
        """The last output of a stream, as far as the next one is compared with it; msgpack."""
        last = self._last.get(name)
        if last is None:
            return None
        return encode(_Memory(self._interval_ns, last) if isinstance(last, int) else _Memory(0, None, last))

    def restore(self, name: str, data: bytes) -> None:
        """Remember what `snapshot` gave.  Raises StateError when it cannot be read."""
        memory = decode(data, _Memory, f"stream {name} in a throttle")
        if memory.interval_ns != self._interval_ns:
            return
        last = memory.state if self._mode == "change" else memory.interval
        if last is not None:
            self._last[name] = last

    def evict(self, name: str) -> None:
        """Let go of a stream: its next output passes, unless it was restored before."""
        self._last.pop(name, None)
        self._changes.drop(name)

    def _passing(self, batch: PredictionBatch) -> tuple[list[int], dict[str, int | _State]]:
        """Rows that pass, and what they leave to be compared with."""
        keys: Sequence[int | _State] = (
            (batch.time_ns // self._interval_ns).tolist() if self._mode == "interval" else _states(batch)
        )
        always = ((batch.reset != ResetReason.NONE) & (batch.reset != ResetReason.WINDOW)).tolist()
        last: dict[str, int | _State] = {}
        passing = []
        for row, (index, key, passes) in enumerate(zip(batch.stream_index.tolist(), keys, always, strict=True)):
            stream = batch.stream_names[index]
            if passes or last.get(stream, self._last.get(stream)) != key:
                passing.append(row)
                last[stream] = key
        return passing, last


def _states(batch: PredictionBatch) -> list[_State]:
    """What makes an output another one: class (or set of classes), alarm, trust."""
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
