"""Limits the log lines of one kind, so that a flood of equal faults does not fill the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class _Bucket:
    """``full_s``: when the bucket will hold ``burst`` lines again; ``suppressed``: events since the last line."""

    __slots__ = ("full_s", "suppressed")

    def __init__(self) -> None:
        self.full_s, self.suppressed = float("-inf"), 0


class LogLimiter(Generic[K]):
    """Allows ``burst`` lines at once for each key, then one in ``interval_s``; counts the events between them.

    ``clock``: monotonic seconds.  There is one bucket for each key: keys must come from a small set.
    """

    def __init__(self, clock: Callable[[], float], *, burst: int = 3, interval_s: float = 10.0) -> None:
        self._clock, self._interval_s = clock, interval_s
        self._tolerance_s = (burst - 1) * interval_s
        self._buckets: dict[K, _Bucket] = {}

    def allow(self, key: K, events: int = 1) -> int | None:
        """Return how many events were suppressed since the last line; None to suppress ``events``."""
        now_s = self._clock()
        bucket = self._buckets.setdefault(key, _Bucket())
        if bucket.full_s - now_s > self._tolerance_s:
            bucket.suppressed += events
            return None
        bucket.full_s = max(bucket.full_s, now_s) + self._interval_s
        suppressed, bucket.suppressed = bucket.suppressed, 0
        return suppressed

    def drain(self) -> Iterator[tuple[K, int]]:
        """Yield each key with suppressed events and their number, which is then zero."""
        for key, bucket in self._buckets.items():
            if bucket.suppressed:
                yield key, bucket.suppressed
                bucket.suppressed = 0


class LogOnce:
    """Logs the first line of each key with ``prefix``; at most ``most`` keys, so that it stays small."""

    def __init__(self, log: logging.Logger, prefix: str, *, level: int = logging.WARNING, most: int = 1000) -> None:
        self._log, self._prefix, self._level, self._most = log, prefix, level, most
        self._keys: set[object] = set()

    def __call__(self, key: object, text: str) -> None:
        """Log ``text``, unless a line of this key was logged before."""
        if key in self._keys or len(self._keys) >= self._most:
            return
        self._keys.add(key)
        last = "; further ones of other kinds are not logged" if len(self._keys) == self._most else ""
        self._log.log(self._level, "%s: %s; logged once%s", self._prefix, text, last)
