"""What waits to be confirmed by a broker: rows in order, and notices of which only the newest of each topic matters."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Outgoing:
    """One publish.  ``key`` is that of a row; what has none is a notice: retained, and sent again after a reconnect."""

    topic: str
    payload: bytes
    key: str = ""
    number: int = 0


class Outbox:
    """Holds every row until the broker has confirmed or refused it.

    Owner's threads put rows and notices in; one other thread takes them, and says what became of them by packet
    identifier.  ``bound`` is how many rows may wait.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.failed = self.discarded = self.confirmed_bytes = 0
        self._changed = threading.Condition()
        self._rows: deque[Outgoing] = deque()
        self._notices: dict[str, Outgoing] = {}
        self._silenced: set[str] = set()
        self._under_way: dict[int, Outgoing] = {}
        self._rows_under_way = self._notices_under_way = 0
        self.last = 0  # number of the newest row
        self._open: dict[int, None] = {}  # numbers of rows that wait for an answer, in order

    def __len__(self) -> int:
        """Rows that are not confirmed."""
        return len(self._rows) + self._rows_under_way

    @property
    def idle(self) -> bool:
        """Whether every row and notice was answered."""
        with self._changed:
            return not (len(self) or self._notices or self._notices_under_way)

    @property
    def under_way(self) -> int:
        """Rows and notices that were sent and not answered."""
        return len(self._under_way)

    def settled_to(self, number: int) -> bool:
        """Whether every row up to this one was confirmed, refused or given up."""
        with self._changed:
            return next(iter(self._open), number + 1) > number

    def put(self, row: Outgoing, *, drop_oldest: bool = False) -> bool:
        """Append a row, perhaps giving up the oldest one that was not sent yet; return whether there was room."""
        with self._changed:
            if len(self) >= self.bound:
                if not drop_oldest:
                    return False
                self.discarded += 1
                if not self._rows:
                    return True  # all that is held was sent: the new one has to go
                self._open.pop(self._rows.popleft().number)
            self.last += 1
            row.number = self.last
            self._open[row.number] = None
            self._rows.append(row)
            return True

    def notice(self, topic: str, payload: bytes) -> None:
        """Have this said on ``topic`` before the next row, in place of what was to be said there."""
        with self._changed:
            self._notices.pop(topic, None)
            if topic not in self._silenced:
                self._notices[topic] = Outgoing(topic, payload)

    def take(self) -> Outgoing | None:
        """The next one to send; tell `sent` or `refused` what became of it."""
        with self._changed:
            if self._notices:
                self._notices_under_way += 1
                return self._notices.pop(next(iter(self._notices)))
            if not self._rows:
                return None
            self._rows_under_way += 1
            return self._rows.popleft()

    def sent(self, mid: int, item: Outgoing) -> None:
        """It is on its way."""
        self._under_way[mid] = item

    def settled(self, mid: int) -> Outgoing | None:
        """The broker has answered; None when this packet is not ours."""
        return self._under_way.pop(mid, None)

    def confirmed(self, item: Outgoing) -> None:
        """The broker has it."""
        self._done(item, 0, len(item.payload))

    def refused(self, item: Outgoing) -> None:
        """It will never be taken."""
        self._done(item, 1, 0)

    def recall(self) -> list[Outgoing]:
        """The connection is another one: rows that were not answered are sent again, in their order, before the rest.

        Return all that was not answered.
        """
        with self._changed:
            again = list(self._under_way.values())
            self._rows.extendleft(item for item in reversed(again) if item.key)
            self._under_way.clear()
            self._rows_under_way = self._notices_under_way = 0
        return again

    def leave(self) -> list[Outgoing]:
        """All rows that are not confirmed, in order, for another outbox; this one is empty then."""
        with self._changed:
            rows = sorted((*(i for i in self._under_way.values() if i.key), *self._rows), key=lambda item: item.number)
            self._rows.clear()
            self._under_way.clear()
            self._open.clear()
            self._rows_under_way = 0
        return rows

    def inherit(self, rows: Iterable[Outgoing]) -> None:
        """Take the rows of another outbox over, before all that comes, however many they are."""
        with self._changed:
            for row in rows:
                self.last += 1
                row.number = self.last
                self._open[row.number] = None
                self._rows.append(row)

    def give_up(self, item: Outgoing) -> None:
        """Never send this again: a row that was just recalled and is the first, or whatever is said on its topic."""
        with self._changed:
            if item.key:
                if self._rows and self._rows[0] is item:
                    self._rows.popleft()
                    self._open.pop(item.number, None)
                    self.failed += 1
            else:
                self._silenced.add(item.topic)
            self._changed.notify_all()

    def wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for ``until`` to be true, looking whenever something was answered; return whether it is."""
        with self._changed:
            return self._changed.wait_for(until, timeout_s)

    def _done(self, item: Outgoing, failed: int, size: int) -> None:
        with self._changed:
            if item.key:
                self._rows_under_way -= 1
                self._open.pop(item.number, None)
                self.failed += failed
                self.confirmed_bytes += size
            else:
                self._notices_under_way -= 1
            self._changed.notify_all()
