"""Outputs on their way to another machine: none is sent before it is stored, none let go before it has an answer.

    put ──▶ held back ──flush, committed──▶ waiting ──take──▶ under way ──settle──▶ answered ──flush, committed──▶ gone
     └──────── immediate, or no store ────────▲ ▲────recall──────┘

The loop puts, flushes and says what was committed; one other thread takes and settles.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from stream_gru.core.commit_records import FlushResult, OutboxRow, SinkCheckpoint


@dataclass(frozen=True, slots=True)
class Left:
    """What an outbox leaves to the one that takes its place; as long as it has rows without an answer.

    ``answered``: numbers of stored rows that no commit has reported yet; ``last``: the highest number that was given;
    ``stored``: no row above this number is stored; ``durable``: whether there is a store at all.
    """

    rows: Sequence[OutboxRow]
    answered: Sequence[int]
    last: int
    stored: int
    durable: bool

    def __len__(self) -> int:
        return len(self.rows)


class Outbox:
    """Numbers rows and holds each until it was confirmed, refused or given up.

    ``bound``: how many may be without an answer.  Beyond it `ready` says no; with ``drop_oldest`` the oldest that is
    not under way is given up instead.  ``immediate``: a row may be sent before the commit that stores it.
    ``changed`` is notified whenever something may be sent or was answered; it guards all that is in here.
    """

    def __init__(self, bound: int, *, drop_oldest: bool = False, immediate: bool = False) -> None:
        self.bound = bound
        self.failed = self.discarded = 0
        self.durable = False
        self.changed = threading.Condition()
        self._drop_oldest, self._immediate = drop_oldest, immediate
        self._last = 0
        self._held: deque[OutboxRow] = deque()
        self._waiting: deque[OutboxRow] = deque()
        self._under_way: dict[int, OutboxRow] = {}
        self._stored = self._flushed = 0  # no row above is stored; the same, once what was flushed is committed
        self._answered: dict[int, None] = {}
        self._told: Sequence[int] = ()

    def __len__(self) -> int:
        """Rows without an answer."""
        with self.changed:
            return len(self._held) + len(self._waiting) + len(self._under_way)

    @property
    def ready(self) -> bool:
        """Whether more may be put in."""
        return self._drop_oldest or len(self) < self.bound

    @property
    def sendable(self) -> int:
        """How many rows `take` would give."""
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        """How many rows were taken and have no answer."""
        return len(self._under_way)

    @property
    def quiet(self) -> bool:
        """Whether there is nothing to send and nothing to be answered."""
        with self.changed:
            return not (self._waiting or self._under_way)

    # ---- what the loop does ---------------------------------------------------------------------------------------

    def resume(self, checkpoint: SinkCheckpoint | None) -> None:
        """Go on with what the store has, before all that comes; None: there is no store, so that nothing is held back.

        What it has already, because it has taken the place of another outbox, is not taken twice.
        """
        if checkpoint is None:
            return
        with self.changed:
            self.durable = True
            self._waiting.extend(row for row in checkpoint.unacked if row.number > self._last)
            self._last = max(self._last, checkpoint.last_number)
            self._stored = self._flushed = max(self._stored, checkpoint.last_number)
            self.changed.notify_all()

    def put(self, rows: Iterable[OutboxRow]) -> None:
        """Take all of them, in order, past the bound or in place of the oldest ones."""
        with self.changed:
            queue = self._held if self._holds_back else self._waiting
            for row in rows:
                if self._drop_oldest and not self._made_room():
                    continue
                self._last += 1
                row.number = self._last
                queue.append(row)
            self.changed.notify_all()

    def flush(self) -> FlushResult:
        """What the next commit shall store and delete; the same again, until `committed`."""
        with self.changed:
            # Above are answers to rows of a flush that was never committed.
            self._answered = {number: None for number in self._answered if number <= self._stored}
            new = list(takewhile(self._is_new, reversed(self._waiting)))
            rows = [*filter(self._is_new, self._under_way.values()), *reversed(new), *self._held]
            self._flushed, self._told = self._last, tuple(self._answered)
            return FlushResult(unacked=rows, acked=self._told)

    def committed(self) -> None:
        """What the last `flush` told is durable: it may be sent."""
        with self.changed:
            self._stored = self._flushed
            for number in self._told:
                del self._answered[number]
            self._told = ()
            while self._held and not self._is_new(self._held[0]):
                self._waiting.append(self._held.popleft())
            self.changed.notify_all()

    def leave(self) -> Left:
        """All that is not finished, for another outbox; this one is empty then."""
        with self.changed:
            rows = [*self._under_way.values(), *self._waiting, *self._held]
            answered = [number for number in self._answered if number <= self._stored]
            for one in (self._under_way, self._waiting, self._held, self._answered):
                one.clear()
            self._told = ()
            return Left(rows, answered, self._last, self._stored, self.durable)

    def take_over(self, left: Left) -> None:
        """Go on in the place of another outbox, before anything was put in, however much it has left.

        It may have resumed from the store already: what is under way here, or was answered, is not sent again.
        """
        with self.changed:
            self.durable, self._last = left.durable, left.last
            self._stored = self._flushed = left.stored
            begun = self._under_way.keys() | self._answered.keys()
            self._answered.update(dict.fromkeys(left.answered))
            self._waiting.clear()
            for row in left.rows:
                if row.number not in begun:
                    (self._held if self._holds_back and self._is_new(row) else self._waiting).append(row)
            self.changed.notify_all()

    # ---- what the sending thread does -----------------------------------------------------------------------------

    def take(self) -> OutboxRow | None:
        """The next row to send; tell `settle` what became of it."""
        with self.changed:
            if not self._waiting:
                return None
            row = self._waiting.popleft()
            self._under_way[row.number] = row
            return row

    def settle(self, row: OutboxRow, *, refused: bool = False) -> None:
        """The other side has it, or will never take it; quiet when it is under way no longer."""
        with self.changed:
            if self._under_way.pop(row.number, None) is not None:
                self.failed += refused
                self._let_go(row)

    def recall(self) -> list[OutboxRow]:
        """What is under way has to be sent again, in its order and before the rest; return it."""
        with self.changed:
            rows = list(self._under_way.values())
            self._under_way.clear()
            self._waiting.extendleft(reversed(rows))
            return rows

    def give_up(self, row: OutboxRow) -> None:
        """Never send this, which was just recalled and is the first; it counts as refused."""
        with self.changed:
            if self._waiting and self._waiting[0] is row:
                self.failed += 1
                self._let_go(self._waiting.popleft())

    # ---- both, with the lock --------------------------------------------------------------------------------------

    @property
    def _holds_back(self) -> bool:
        return self.durable and not self._immediate

    def _is_new(self, row: OutboxRow) -> bool:
        return row.number > self._stored

    def _made_room(self) -> bool:
        """Give up the oldest rows that are not under way; False: all that is held is, and the new one has to go."""
        while len(self) >= self.bound:
            queue = self._waiting or self._held
            self.discarded += 1
            if not queue:
                return False
            self._let_go(queue.popleft())
        return True

    def _let_go(self, row: OutboxRow) -> None:
        """It needs no answer any more; what may have been stored has to be deleted there."""
        if row.number <= self._flushed:
            self._answered[row.number] = None
        self.changed.notify_all()
