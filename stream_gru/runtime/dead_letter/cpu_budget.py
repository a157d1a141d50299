"""How much time may be spent on what was refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SHARE = 0.02
_MOST_S = 0.02  # what is saved up in quiet times


class Budget:
    """A share of the time, which is saved up for a second; what takes longer is paid back before anything else."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._left_s, self._seen = clock, _MOST_S, clock()

    @property
    def spent(self) -> bool:
        """Whether nothing is left now."""
        now = self._clock()
        self._left_s = min(_MOST_S, self._left_s + (now - self._seen) * _SHARE)
        self._seen = now
        return self._left_s <= 0.0

    @contextmanager
    def work(self) -> Iterator[None]:
        """Do something that counts."""
        begin = self._clock()
        yield
        self._left_s -= self._clock() - begin
