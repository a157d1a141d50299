"""Outputs on their way to another machine: none is sent before it is stored, none let go before it has an answer.

    put ──▶ held back ──flush, committed──▶ waiting ──take──▶ under way ──settle──▶ answered ──flush, committed──▶ gone
     └──────── immediate, or no store ────────▲ ▲────recall──────┘

The loop puts, flushes and says what was committed; one other thread takes and settles.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import takewhile

from stream_gru.core.commit_records import FlushResult, OutboxRow, OutboxState, SinkCheckpoint


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
        self._staged: deque[OutboxRow] = deque()
        self._pending: deque[OutboxRow] = deque()
        self._in_flight: dict[int, OutboxRow] = {}
        self._stored = self._flushed = 0  # no row above is stored; the same, once what was flushed is committed
        self._acked: dict[int, None] = {}
        self._reported: Sequence[int] = ()

    def __len__(self) -> int:
        """Rows without an answer."""
        with self.changed:
            return len(self._staged) + len(self._pending) + len(self._in_flight)

    @property
    def ready(self) -> bool:
        """Whether more may be put in."""
        return self._drop_oldest or len(self) < self.bound

    @property
    def sendable(self) -> int:
        """How many rows `take` would give."""
        return len(self._pending)

    @property
    def quiet(self) -> bool:
        """Whether there is nothing to send and nothing to be answered."""
        with self.changed:
            return not (self._pending or self._in_flight)

    # ---- what the loop does ---------------------------------------------------------------------------------------

    def resume(self, checkpoint: SinkCheckpoint | None) -> None:
        """Go on with what the store has, before all that comes; None: there is no store, so that nothing is held back.

        What it has already, because it has taken the place of another outbox, is not taken twice.
        """
        if checkpoint is None:
            return
        with self.changed:
            self.durable = True
            self._pending.extend(row for row in checkpoint.unacked if row.number > self._last)
            self._last = max(self._last, checkpoint.last_number)
            self._stored = self._flushed = max(self._stored, checkpoint.last_number)
            self.changed.notify_all()

    def put(self, rows: Iterable[OutboxRow]) -> None:
        """Take all of them, in order, past the bound or in place of the oldest ones."""
        with self.changed:
            queue = self._staged if self._stages else self._pending
            for row in rows:
                if self._drop_oldest and not self._make_room():
                    continue
                self._last += 1
                row.number = self._last
                queue.append(row)
            self.changed.notify_all()

    def flush(self) -> FlushResult:
        """What the next commit shall store and delete; the same again, until `committed`."""
        with self.changed:
            # Above are answers to rows of a flush that was never committed.
            self._acked = {number: None for number in self._acked if number <= self._stored}
            new = list(takewhile(self._is_new, reversed(self._pending)))
            rows = [*filter(self._is_new, self._in_flight.values()), *reversed(new), *self._staged]
            self._flushed, self._reported = self._last, tuple(self._acked)
            return FlushResult(unacked=rows, acked=self._reported)

    def committed(self) -> None:
        """What the last `flush` told is durable: it may be sent."""
        with self.changed:
            self._stored = self._flushed
            for number in self._reported:
                del self._acked[number]
            self._reported = ()
            while self._staged and not self._is_new(self._staged[0]):
                self._pending.append(self._staged.popleft())
            self.changed.notify_all()

    def handoff(self) -> OutboxState:
        """All that is not finished, for another outbox; this one is empty then."""
        with self.changed:
            rows = [*self._in_flight.values(), *self._pending, *self._staged]
            acked = [number for number in self._acked if number <= self._stored]
            for one in (self._in_flight, self._pending, self._staged, self._acked):
                one.clear()
            self._reported = ()
            return OutboxState(rows, acked, self._last, self._stored, self.durable)

    def adopt(self, state: OutboxState) -> None:
        """Go on in the place of another outbox, before anything was put in, however much it has left.

        It may have resumed from the store already: what is under way here, or was answered, is not sent again.
        """
        with self.changed:
            self.durable, self._last = state.durable, state.last_number
            self._stored = self._flushed = state.stored
            begun = self._in_flight.keys() | self._acked.keys()
            self._acked.update(dict.fromkeys(state.acked))
            self._pending.clear()
            for row in state.rows:
                if row.number not in begun:
                    (self._staged if self._stages and self._is_new(row) else self._pending).append(row)
            self.changed.notify_all()

    # ---- what the sending thread does -----------------------------------------------------------------------------

    def take(self) -> OutboxRow | None:
        """The next row to send; tell `settle` what became of it."""
        with self.changed:
            if not self._pending:
                return None
            row = self._pending.popleft()
            self._in_flight[row.number] = row
            return row

    def ack(self, row: OutboxRow) -> None:
        """The other side has it; nothing happens when it is no longer in flight."""
        with self.changed:
            if self._in_flight.pop(row.number, None) is not None:
                self._finish(row)

    def nack(self, row: OutboxRow) -> None:
        """The other side will never take it; it counts as failed."""
        with self.changed:
            if self._in_flight.pop(row.number, None) is not None:
                self.failed += 1
                self._finish(row)

    def requeue(self) -> list[OutboxRow]:
        """What is under way has to be sent again, in its order and before the rest; return it."""
        with self.changed:
            rows = list(self._in_flight.values())
            self._in_flight.clear()
            self._pending.extendleft(reversed(rows))
            return rows

    def drop(self, row: OutboxRow) -> None:
        """Never send this, which was just recalled and is the first; it counts as refused."""
        with self.changed:
            if self._pending and self._pending[0] is row:
                self.failed += 1
                self._finish(self._pending.popleft())

    # ---- both, with the lock --------------------------------------------------------------------------------------

    @property
    def _stages(self) -> bool:
        return self.durable and not self._immediate

    def _is_new(self, row: OutboxRow) -> bool:
        return row.number > self._stored

    def _make_room(self) -> bool:
        """Give up the oldest rows that are not under way; False: all that is held is, and the new one has to go."""
        while len(self) >= self.bound:
            queue = self._pending or self._staged
            self.discarded += 1
            if not queue:
                return False
            self._finish(queue.popleft())
        return True

    def _finish(self, row: OutboxRow) -> None:
        """It needs no answer any more; what may have been stored has to be deleted there."""
        if row.number <= self._flushed:
            self._acked[row.number] = None
        self.changed.notify_all()
