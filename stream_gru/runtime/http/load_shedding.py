"""Answers that take some work: however many ask for them, the work takes a fifth of the time at most."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")
_REST = 4.0
_KINDS = 8


class CostCache(Generic[_T]):
    """Remembers what was made for four times as long as that took: a few milliseconds for what is made quickly.

    Used in one thread only.  ``clock``: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made: dict[str, tuple[float, _T]] = {}

    def get(self, kind: str, make: Callable[[], _T]) -> _T:
        """What was made of this kind a moment ago, or else now."""
        begin_s = self._clock()
        until_s, found = self._made.get(kind, (begin_s, None))
        if found is None or begin_s >= until_s:
            found = make()
            end_s = self._clock()
            if len(self._made) >= _KINDS:
                self._made.clear()
            self._made[kind] = end_s + _REST * (end_s - begin_s), found
        return found


class FairLimiter:
    """One after the other, with a rest of four times the work after each."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._free_s = 0.0

    async def do(self, make: Callable[[], _T]) -> _T:
        """Wait for our turn, then make it."""
        async with self._lock:
            await asyncio.sleep(max(0.0, self._free_s - time.monotonic()))
            begin_s = time.monotonic()
            made = make()
            end_s = time.monotonic()
            self._free_s = end_s + _REST * (end_s - begin_s)
        return made
