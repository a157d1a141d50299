"""Reconnecting: how long to wait, and which output makes a broker cut the connection.

Some brokers cut a client for an output that they do not accept, or answer it in a way that paho does not understand.
Sent again on the next connection, it would cut that one too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from stream_gru.core.commit_records import OutboxRow

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


# Connections that one output may cost before it is dropped.
_CUTS_OF_ONE = 4
# Acknowledged outputs after which several may be in flight again.
_TRUSTED_AFTER = 20


class CutSuspect:
    """Suspects the oldest output in flight; while it does, outputs are sent one by one."""

    def __init__(self) -> None:
        self._suspect: OutboxRow | None = None
        self._cuts = self._one_by_one = 0

    @property
    def one_by_one(self) -> bool:
        """Whether only one output may be in flight."""
        return self._one_by_one > 0

    def connected(self, short_connections: int, unanswered: Sequence[OutboxRow]) -> OutboxRow | None:
        """Return the output to drop, if any; ``unanswered`` were in flight on the connection before, oldest first."""
        if not short_connections or not unanswered:
            return None
        first, before = unanswered[0], self._suspect
        same = before is not None and (before.topic, before.number) == (first.topic, first.number)
        self._suspect, self._cuts = first, self._cuts + 1 if same else 1
        self._one_by_one = _TRUSTED_AFTER
        if self._cuts < _CUTS_OF_ONE:
            return None
        self._cuts = 0
        return first

    def acked(self) -> None:
        """An output was acknowledged."""
        self._one_by_one = max(0, self._one_by_one - 1)
