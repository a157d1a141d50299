"""Checks of live streams: which are idle, whose samples are dropped, and which do not sample at the trained rate.

The callers pass the time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice, pairwise
from statistics import median

from stream_gru.core.types import NS_PER_S, PredictionBatch

_DROPS_IN_A_ROW = 10
_SAMPLES = 20
_FACTOR = 1.5


class IdleStreams:
    """Tracks the last sample of each stream; after ``timeout_s`` seconds without one a stream is idle.

    A stream is tracked from its first sample on.  Streams are ordered by their last sample, so that a check costs as
    much as has changed.

    Beyond ``max_streams`` the least recently seen streams are forgotten, idle ones first: the ``max_streams`` most
    recently seen are always tracked.  After an idle stream was forgotten, an unknown stream may be that one: it counts
    as resumed.
    """

    def __init__(self, timeout_s: float, *, max_streams: int = 1_000_000) -> None:
        self.timeout_s, self.max_streams = timeout_s, max_streams
        self._seen_s: OrderedDict[str, float] = OrderedDict()  # active streams
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._resumed: dict[str, bool] = {}  # since the last check; whether it was certainly idle before
        self._forgot_idle = False

    @property
    def count(self) -> int:
        """Number of idle streams."""
        return len(self._idle)

    def is_idle(self, stream: str) -> bool:
        """Return whether a stream is idle."""
        return stream in self._idle

    def seen(self, streams: Iterable[str], now_s: float) -> None:
        """Record samples of these streams; ``now_s`` must not decrease."""
        seen_s = self._seen_s
        for stream in streams:
            if stream in seen_s:
                seen_s.move_to_end(stream)
            elif stream in self._idle:
                del self._idle[stream]
                self._resumed[stream] = True
            elif self._forgot_idle:
                self._resumed[stream] = False
            seen_s[stream] = now_s
        self._forget_surplus()

    def check(self, now_s: float) -> tuple[list[str], list[str]]:
        """Return the streams that became idle and those that resumed since the last check.

        A stream that resumed and became idle again in between is in neither list.
        """
        resumed, self._resumed = self._resumed, {}
        became_idle = []
        for stream in self._timed_out(now_s):
            del self._seen_s[stream]
            self._idle[stream] = None
            if not resumed.pop(stream, False):
                became_idle.append(stream)
        return became_idle, list(resumed)

    def forget(self, stream: str) -> None:
        """Stop tracking a stream until its next sample.  Does nothing if it is unknown."""
        self._seen_s.pop(stream, None)
        self._idle.pop(stream, None)
        self._resumed.pop(stream, None)

    def _forget_surplus(self) -> None:
        for _ in range(len(self._seen_s) + len(self._idle) - self.max_streams):
            if self._idle:
                self._idle.popitem(last=False)
                self._forgot_idle = True
            else:
                stream, _seen_s = self._seen_s.popitem(last=False)
                self._resumed.pop(stream, None)

    def _timed_out(self, now_s: float) -> list[str]:
        """Return the active streams whose last sample is too old, oldest first."""
        count = 0
        for last_s in self._seen_s.values():
            if now_s - last_s < self.timeout_s:
                break
            count += 1
        return list(islice(self._seen_s, count))


class StreamDrops:
    """Samples of each stream that were dropped since the process started, and why the last one was.

    The ``max_streams`` streams with the latest drops are kept.  Another thread may read.
    """

    def __init__(self, max_streams: int = 10_000) -> None:
        self._max_streams = max_streams
        self._counts: OrderedDict[str, tuple[int, str]] = OrderedDict()
        self._in_a_row: dict[str, int] = {}

    def observe(self, out: PredictionBatch) -> None:
        """Count the drops of one batch."""
        for drop in out.drops:
            count, _ = self._counts.pop(drop.stream, (0, ""))
            self._counts[drop.stream] = count + drop.records, drop.reason.text
            self._in_a_row[drop.stream] = self._in_a_row.get(drop.stream, 0) + drop.records
        for stream in {out.stream_names[i] for i in set(out.stream_index.tolist())} if self._in_a_row else ():
            self._in_a_row.pop(stream, None)
        while len(self._counts) > self._max_streams:
            stream, _ = self._counts.popitem(last=False)
            self._in_a_row.pop(stream, None)

    def of(self, stream: str) -> tuple[int, str]:
        """Return how many samples of a stream were dropped, and the last reason."""
        return self._counts.get(stream, (0, ""))

    def all_dropped(self, stream: str) -> bool:
        """Return whether the latest samples of a stream were all dropped."""
        return self._in_a_row.get(stream, 0) >= _DROPS_IN_A_ROW


class SampleRateCheck:
    """Compares the median time between the first samples of each stream with ``period_s``, once.

    A model learns steps, not seconds: at five times the rate a forecast ten steps ahead covers a fifth of the time, and
    nothing else would show it.

    Checks at most ``max_streams`` streams, those that come first.
    """

    def __init__(self, period_s: float, max_streams: int = 10_000) -> None:
        self._period_ns, self._max_streams = period_s * NS_PER_S, max_streams
        self._times: dict[str, list[int]] = {}
        self._done: set[str] = set()

    def observe(self, out: PredictionBatch) -> list[tuple[str, float]]:
        """Return the streams found to have another period, with that in seconds; each stream once."""
        found: list[tuple[str, float]] = []
        for index in set(out.stream_index.tolist()):
            stream = out.stream_names[index]
            if stream in self._done or (stream not in self._times and self._tracked >= self._max_streams):
                continue
            times = self._times.setdefault(stream, [])
            times += out.time_ns[out.stream_index == index][: _SAMPLES - len(times)].tolist()
            if len(times) < _SAMPLES:
                continue
            del self._times[stream]
            self._done.add(stream)
            found_ns = median(after - before for before, after in pairwise(times))
            if not self._period_ns / _FACTOR < found_ns < self._period_ns * _FACTOR:
                found.append((stream, found_ns / NS_PER_S))
        return found

    @property
    def _tracked(self) -> int:
        return len(self._done) + len(self._times)
