"""How long to wait before trying again: longer each time, never longer than allowed, never all at once."""

from __future__ import annotations

import random
from collections.abc import Callable

_FIRST_S = 0.5
# A connection that the broker cuts sooner than this has not cured what was wrong.
_STABLE_S = 2.0


class Backoff:
    """Pauses that double from half a second to ``longest_s``, each shortened by a random part of its half."""

    def __init__(self, longest_s: float, uniform: Callable[[], float] = random.random) -> None:
        self._longest_s, self._uniform = longest_s, uniform
        self._next_s = min(_FIRST_S, longest_s)

    def pause_s(self, lasted_s: float) -> float:
        """The next pause, after a connection that lasted so long (0: there was none)."""
        if lasted_s >= _STABLE_S:
            self._next_s = min(_FIRST_S, self._longest_s)
        pause = self._next_s
        self._next_s = min(2.0 * pause, self._longest_s)
        return pause * (1.0 - 0.5 * self._uniform())
