"""Finds the output for which a broker cuts the connection.

Some brokers cut a client for an output that they do not accept, or answer it in a way that is not understood.  Sent
again on the next connection, it would cut that one too, without end.
"""

from __future__ import annotations

from collections.abc import Sequence

from stream_gru.core.commit_records import OutboxRow

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
