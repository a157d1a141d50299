"""Checks of live streams: which are idle, and which send at another rate than in training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice, pairwise
from statistics import median

from stream_gru.core.types import NS_PER_S, PredictionBatch


class IdleStreams:
    """Finds idle streams: those without a sample for ``after_s`` seconds.

    Streams are kept in the order of their latest sample, so a check costs as much as has changed.  Beyond
    ``max_streams`` the least recent ones are dropped, idle ones first.  Once an idle one was dropped, an unknown stream
    may be it, so it counts as one that sends again.
    """

    def __init__(self, after_s: float, *, max_streams: int = 1_000_000) -> None:
        self.after_s, self.max_streams = after_s, max_streams
        self._heard: OrderedDict[str, float] = OrderedDict()
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._resumed: dict[str, bool] = {}  # whether it is certain that the stream was idle
        self._dropped_idle = False

    @property
    def idle(self) -> int:
        """How many streams are idle."""
        return len(self._idle)

    def is_idle(self, stream: str) -> bool:
        """Whether a stream is idle."""
        return stream in self._idle

    def seen(self, streams: Iterable[str], now_s: float) -> None:
        """Note samples of these streams; ``now_s`` never decreases."""
        heard = self._heard
        for stream in streams:
            if stream in heard:
                heard.move_to_end(stream)
            elif stream in self._idle:
                del self._idle[stream]
                self._resumed[stream] = True
            elif self._dropped_idle:
                self._resumed[stream] = False
            heard[stream] = now_s
        self._drop_surplus()

    def check(self, now_s: float) -> tuple[list[str], list[str]]:
        """Return the streams that became idle and those that send again since the last check.

        A stream that sent and became idle again in between is in neither list.
        """
        resumed, self._resumed = self._resumed, {}
        became_idle = []
        for stream in self._overdue(now_s):
            del self._heard[stream]
            self._idle[stream] = None
            if not resumed.pop(stream, False):
                became_idle.append(stream)
        return became_idle, list(resumed)

    def forget(self, stream: str) -> None:
        """Forget a stream; no error when it is unknown."""
        self._heard.pop(stream, None)
        self._idle.pop(stream, None)
        self._resumed.pop(stream, None)

    def _drop_surplus(self) -> None:
        """Drop the streams beyond ``max_streams``."""
        for _ in range(len(self._heard) + len(self._idle) - self.max_streams):
            if self._idle:
                self._idle.popitem(last=False)
                self._dropped_idle = True
            else:
                stream, _heard_s = self._heard.popitem(last=False)
                self._resumed.pop(stream, None)

    def _overdue(self, now_s: float) -> list[str]:
        """The least recent streams, whose latest sample is ``after_s`` or more ago."""
        overdue = 0
        for last_s in self._heard.values():
            if now_s - last_s < self.after_s:
                break
            overdue += 1
        return list(islice(self._heard, overdue))


_SAMPLES = 20
_FACTOR = 1.5


class SampleRateCheck:
    """Compares the median time between samples with ``period_s``: a model learns steps, not seconds.

    Fed five times as fast, its forecast for ten steps is two seconds ahead.  Checks the first samples of each stream
    once, for the first ``max_streams`` streams.
    """

    def __init__(self, period_s: float, max_streams: int = 10_000) -> None:
        self._period_ns, self._max_streams = period_s * NS_PER_S, max_streams
        self._times: dict[str, list[int]] = {}
        self._done: set[str] = set()

    def observe(self, out: PredictionBatch) -> list[tuple[str, float]]:
        """Return the streams with another period, and that period in seconds; each stream is returned once."""
        found: list[tuple[str, float]] = []
        for index in set(out.stream_index.tolist()):
            stream = out.stream_names[index]
            if stream in self._done or (stream not in self._times and self._known >= self._max_streams):
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
    def _known(self) -> int:
        return len(self._done) + len(self._times)
