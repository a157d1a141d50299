"""The period watch: does a device send as often as the model was trained for?

A model learns steps, not seconds: fed five times as fast, its forecast for ten steps is two seconds ahead, and nothing
else would tell.  The first samples of each stream are looked at, once.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median

from stream_gru.core.types import NS_PER_S, PredictionBatch

_SAMPLES = 20
_FACTOR = 1.5


class SampleRateCheck:
    """Compares the median time between samples with ``period_s``.

    Of at most ``max_streams`` anything is remembered: those that came first; the others are not looked at.
    """

    def __init__(self, period_s: float, max_streams: int = 10_000) -> None:
        self._period_ns, self._max_streams = period_s * NS_PER_S, max_streams
        self._times: dict[str, list[int]] = {}
        self._done: set[str] = set()

    def observe(self, out: PredictionBatch) -> list[tuple[str, float]]:
        """Return the streams whose period turned out to be another one, with it in seconds; each is told once."""
        found: list[tuple[str, float]] = []
        for index in set(out.stream_index.tolist()):
            stream = out.stream_names[index]
            if stream in self._done or (stream not in self._times and self._remembered >= self._max_streams):
                continue
            times = self._times.setdefault(stream, [])
            times += out.time_ns[out.stream_index == index][: _SAMPLES - len(times)].tolist()
            if len(times) < _SAMPLES:
                continue
            del self._times[stream]
            self._done.add(stream)
            seen_ns = median(after - before for before, after in pairwise(times))
            if not self._period_ns / _FACTOR < seen_ns < self._period_ns * _FACTOR:
                found.append((stream, seen_ns / NS_PER_S))
        return found

    @property
    def _remembered(self) -> int:
        return len(self._done) + len(self._times)
