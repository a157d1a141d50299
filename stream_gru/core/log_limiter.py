"""A limit on log lines of one kind, so that a flood of equal faults does not fill the log."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class _Bucket:
    """``tokens``: lines that may be written as of ``updated_s``; ``suppressed``: events since the last line."""

    __slots__ = ("suppressed", "tokens", "updated_s")

    def __init__(self, tokens: float, updated_s: float) -> None:
        self.tokens, self.updated_s, self.suppressed = tokens, updated_s, 0


class LogLimiter(Generic[K]):
    """Allows ``burst`` lines at once for each key, then one in ``interval_s``; counts the events between them.

    ``clock``: monotonic seconds.  There is one bucket for each key: keys must come from a small set.
    """

    def __init__(self, clock: Callable[[], float], *, burst: int = 3, interval_s: float = 10.0) -> None:
        self._clock, self._burst, self._interval_s = clock, burst, interval_s
        self._buckets: dict[K, _Bucket] = {}

    def allow(self, key: K, events: int = 1) -> int | None:
        """Return how many events were suppressed since the last line; None to suppress ``events``."""
        now_s = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._burst, now_s)
        bucket.tokens = min(self._burst, bucket.tokens + (now_s - bucket.updated_s) / self._interval_s)
        bucket.updated_s = now_s
        if bucket.tokens < 1.0:
            bucket.suppressed += events
            return None
        bucket.tokens -= 1.0
        suppressed, bucket.suppressed = bucket.suppressed, 0
        return suppressed

    def drain(self) -> Iterator[tuple[K, int]]:
        """Yield each key with suppressed events and their number, which is then zero."""
        for key, bucket in self._buckets.items():
            if bucket.suppressed:
                yield key, bucket.suppressed
                bucket.suppressed = 0
