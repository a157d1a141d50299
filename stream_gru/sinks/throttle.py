"""Fewer outputs for a sink: one of each stream in each interval, or those where something changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import numpy as np

from stream_gru.protocols import Sink
from stream_gru.types import NS_PER_S, PredictionBatch, ResetReason, SinkHealth


class Throttled:
    """Hands some rows on to ``sink``; nothing depends on how the rows were cut into batches.

    ``interval``  the first output of each stream in each ``interval_s`` of event time, counted from 1970
    ``change``    an output whose class, alarm or trust differs from that of the stream's output before it

    The first output of a stream and each after a reset (but for those of the windowed regime) always pass.
    ``withheld`` counts the others.
    """

    def __init__(self, sink: Sink, mode: Literal["interval", "change"], interval_s: float = 60.0) -> None:
        self._sink, self._mode = sink, mode
        self._interval_ns = max(1, round(interval_s * NS_PER_S))
        self._last: dict[str, Hashable] = {}
        self.withheld = 0

    @property
    def stream_status(self) -> Callable[[str, bool], None]:
        """That of the sink.  Raises AttributeError where it has none."""
        tell: Callable[[str, bool], None] = getattr(self._sink, "stream_status")  # noqa: B009 - it may have none
        return tell

    def left(self) -> list[Any]:
        """What the sink leaves to another one; nothing where it keeps nothing."""
        leave: Callable[[], list[Any]] = getattr(self._sink, "left", list)
        return leave()

    def take_over(self, rows: list[Any]) -> None:
        """Hand over what another sink has left."""
        getattr(self._sink, "take_over", lambda _: None)(rows)

    def open(self) -> None:
        """Open the sink."""
        self._sink.open()

    def write(self, batch: PredictionBatch) -> None:
        """Write the rows that pass.  Raises what the sink raises."""
        rows, last = self._passing(batch)
        if rows:
            self._sink.write(batch if len(rows) == len(batch) else batch.take(np.array(rows, np.int64)))
        # Only now: a batch that could not be written comes again.
        self._last.update(last)
        self.withheld += len(batch) - len(rows)

    def flush(self) -> int:
        """Flush the sink."""
        return self._sink.flush()

    def close(self) -> None:
        """Close the sink."""
        self._sink.close()

    def health(self) -> SinkHealth:
        """How the sink is doing."""
        return self._sink.health()

    def _passing(self, batch: PredictionBatch) -> tuple[list[int], dict[str, Hashable]]:
        """Rows that pass, and what they leave to be compared with."""
        keys: Sequence[Hashable] = (
            (batch.time_ns // self._interval_ns).tolist() if self._mode == "interval" else _states(batch)
        )
        always = ((batch.reset != ResetReason.NONE) & (batch.reset != ResetReason.WINDOW)).tolist()
        last: dict[str, Hashable] = {}
        passing = []
        for row, (index, key, passes) in enumerate(zip(batch.stream.tolist(), keys, always, strict=True)):
            stream = batch.streams[index]
            if passes or last.get(stream, self._last.get(stream)) != key:
                passing.append(row)
                last[stream] = key
        return passing, last


def _states(batch: PredictionBatch) -> list[Hashable]:
    """What makes an output another one: class (or set of classes), alarm, trust."""
    trusted = batch.trusted.tolist()
    alarm = [None] * len(batch) if batch.alarm is None else batch.alarm.tolist()
    return list(zip(_classes(batch), alarm, trusted, strict=True))


def _classes(batch: PredictionBatch) -> Sequence[Hashable]:
    if batch.probabilities is None:
        return [None] * len(batch)
    best = batch.best_class.tolist()
    if batch.spec.exclusive:
        return best
    likely = np.packbits(batch.probabilities >= 0.5, axis=1)
    return [row.tobytes() if code >= 0 else None for row, code in zip(likely, best, strict=True)]
