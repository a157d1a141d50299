"""Paces the replay of a recording: at its original speed or a multiple of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from stream_gru.core.timestamps import LIMIT_NS
from stream_gru.core.types import NS_PER_S, SampleBatch

_TICK_S = 0.05
# Longer pauses in the recording are skipped.
_MAX_PAUSE_S = 5.0
_STEP_BACK_S = 60


class ReplayPacer:
    """Yields the rows of batches when they are due.

    ``speed``  multiple of the recorded speed
    ``clock``  monotonic seconds
    ``wait``   sleeps for so many seconds; returns True to stop: then the rest of the batch is skipped
    """

    def __init__(self, speed: float, clock: Callable[[], float], wait: Callable[[float], bool]) -> None:
        self._speed, self._clock, self._wait = speed, clock, wait
        self._begin: float | None = None
        self._first_ns = self._max_event_ns = 0

    def parts(self, batch: SampleBatch) -> Iterator[SampleBatch]:
        """Yield the rows of ``batch`` in order, each when the largest event time so far is due."""
        if not len(batch):
            yield batch
            return
        if int(batch.time_ns[0]) < self._max_event_ns - _STEP_BACK_S * NS_PER_S:
            self._begin = None  # the next recording, which starts before the end of the last one
        due_ns = np.maximum.accumulate(batch.time_ns)
        self._max_event_ns = int(due_ns[-1])
        first, rejected = 0, batch.rejected
        while first < len(batch):
            now = self._now_ns(int(due_ns[first]))
            last = int(np.searchsorted(due_ns, now, side="right"))
            if last > first:
                part = batch.take(slice(first, last))
                yield replace(part, rejected=rejected) if rejected else part
                first, rejected = last, ()
            if first < len(batch) and self._wait(min(_TICK_S, self._seconds_until(int(due_ns[first])))):
                return

    def _now_ns(self, next_ns: int) -> int:
        """Return the event time that is due now; a long pause of the recording is skipped."""
        clock = self._clock()
        if self._begin is None:
            self._begin, self._first_ns = clock, next_ns
        ahead_s = (next_ns - self._first_ns) / NS_PER_S / self._speed - (clock - self._begin)
        if ahead_s > _MAX_PAUSE_S:
            self._begin, self._first_ns = clock, next_ns
        return self._first_ns + round(min((clock - self._begin) * self._speed * NS_PER_S, LIMIT_NS))

    def _seconds_until(self, next_ns: int) -> float:
        begin = self._clock() if self._begin is None else self._begin
        return max(0.001, begin + (next_ns - self._first_ns) / NS_PER_S / self._speed - self._clock())
