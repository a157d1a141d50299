"""Reconnecting: how long to wait, whether another client has the same id, which output makes a broker cut us off.

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
    """Pauses that double from half a second to ``longest_s``, each shortened by a random part of its half.

    While the client id is ``contested``, they double up to a minute at least, however long a connection lasted.
    """

    def __init__(self, longest_s: float, uniform: Callable[[], float] = random.random) -> None:
        self._longest_s, self._uniform = longest_s, uniform
        self._next_s = _FIRST_S

    def pause_s(self, lasted_s: float, *, contested: bool = False) -> float:
        """The next pause, after a connection that lasted so long (0: there was none)."""
        longest_s = max(self._longest_s, CONTESTED_S) if contested else self._longest_s
        if lasted_s >= _STABLE_S and not contested:
            self._next_s = _FIRST_S
        pause = min(self._next_s, longest_s)
        self._next_s = min(2.0 * pause, longest_s)
        return pause * (1.0 - 0.5 * self._uniform())


CONTESTED_S = 60.0
"""Longest pause while another client uses the client id."""
# A connection that lasted longer than the other client pauses, if that is a daemon too: there is no other client.
_SETTLED_S = 2 * CONTESTED_S
# One take-over can be the daemon's own earlier connection that a frozen broker handled late; two are another client.
_TAKE_OVERS = 2
# Closed this often in a row so soon, and accepted again at the first attempt: the broker is not restarting.
_CLOSED_SOON, _SOON_S = 5, 10.0


class RivalDetector:
    """Detects another client with the same client id: the broker closes the connection of one for that of the other.

    Brokers of MQTT 3.1.1, and Mosquitto 2.0.11 with MQTT 5, give no reason; then connections that are closed soon and
    repeatedly count.  ``certain``: the broker gave the reason; ``contested``: it did, or it is likely.
    """

    def __init__(self) -> None:
        self._take_overs = self._closed_soon = 0

    @property
    def certain(self) -> bool:
        """Whether the broker has named the reason repeatedly."""
        return self._take_overs >= _TAKE_OVERS

    @property
    def contested(self) -> bool:
        """Whether another client most likely uses the client id."""
        return self.certain or self._closed_soon >= _CLOSED_SOON

    def ended(self, lasted_s: float, *, taken_over: bool, closed: bool) -> None:
        """A connection ended that lasted so long (0: an attempt failed).

        ``taken_over``: the broker gave this reason; ``closed``: it gave none.
        """
        soon_s = _SETTLED_S if self.contested else _SOON_S
        if lasted_s >= _SETTLED_S:
            self._take_overs = 0
        self._take_overs += taken_over
        self._closed_soon = self._closed_soon + 1 if closed and 0 < lasted_s < soon_s else 0


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
