"""Outputs for another machine: none is sent before it is stored, none is dropped before it is acknowledged.

    put ──▶ staged ──flush, committed──▶ pending ──take──▶ in flight ──ack, nack──▶ acked ──flush, committed──▶ gone
     └──────── immediate, or no store ─────▲ ▲────requeue─────┘

The loop puts and commits; one other thread takes and acknowledges.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import takewhile

from stream_gru.core.commit_records import FlushResult, OutboxRow, OutboxState, SinkCheckpoint


class Outbox:
    """Numbers rows and holds each until it was acknowledged, refused or dropped.

    ``bound``, ``max_bytes``: rows without an acknowledgement, and bytes of their payloads, at most.  Beyond them
    `ready` is false; with ``drop_oldest`` the oldest row that is not in flight is dropped instead.  ``immediate``: a
    row may be sent before the commit that stores it.  ``changed`` guards everything in here and is notified when rows
    may be sent or were acknowledged.
    """

    def __init__(
        self, bound: int, *, max_bytes: int = 2**40, drop_oldest: bool = False, immediate: bool = False
    ) -> None:
        self.bound, self.max_bytes = bound, max_bytes
        self._bytes = 0
        self.failed = self.dropped = 0
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
        """Rows without an acknowledgement."""
        with self.changed:
            return len(self._staged) + len(self._pending) + len(self._in_flight)

    @property
    def ready(self) -> bool:
        """Whether more may be put in."""
        return self._drop_oldest or not self._full

    @property
    def sendable(self) -> int:
        """How many rows `take` would return."""
        return len(self._pending)

    @property
    def quiet(self) -> bool:
        """Whether nothing is pending or in flight."""
        with self.changed:
            return not (self._pending or self._in_flight)

    # ---- for the loop -----------------------------------------------------------------------------------------------

    def resume(self, checkpoint: SinkCheckpoint | None) -> None:
        """Continue with the rows of the store; None: there is no store, so rows are not staged.

        Rows that it already has, because it adopted another outbox, are not added twice.
        """
        if checkpoint is None:
            return
        with self.changed:
            self.durable = True
            rows = [row for row in checkpoint.unacked if row.number > self._last]
            self._pending.extend(rows)
            self._bytes += _size(rows)
            self._last = max(self._last, checkpoint.last_number)
            self._stored = self._flushed = max(self._stored, checkpoint.last_number)
            self.changed.notify_all()

    def put(self, rows: Iterable[OutboxRow]) -> None:
        """Append all of them, in order, past the bound or in place of the oldest ones."""
        with self.changed:
            queue = self._staged if self._stages else self._pending
            for row in rows:
                if self._drop_oldest and not self._make_room():
                    continue
                self._last += 1
                row.number = self._last
                self._bytes += len(row.payload)
                queue.append(row)
            self.changed.notify_all()

    def flush(self) -> FlushResult:
        """What the next commit stores and deletes; the same again until `committed`."""
        with self.changed:
            # Acknowledgements above are of rows whose flush was never committed.
            self._acked = {number: None for number in self._acked if number <= self._stored}
            new = list(takewhile(self._is_new, reversed(self._pending)))
            rows = [*filter(self._is_new, self._in_flight.values()), *reversed(new), *self._staged]
            self._flushed, self._reported = self._last, tuple(self._acked)
            return FlushResult(unacked=rows, acked=self._reported)

    def committed(self) -> None:
        """The result of the last `flush` is durable: its rows may be sent."""
        with self.changed:
            self._stored = self._flushed
            for number in self._reported:
                del self._acked[number]
            self._reported = ()
            while self._staged and not self._is_new(self._staged[0]):
                self._pending.append(self._staged.popleft())
            self.changed.notify_all()

    def handoff(self) -> OutboxState:
        """Everything unfinished, for another outbox; this one is empty afterwards."""
        with self.changed:
            rows = [*self._in_flight.values(), *self._pending, *self._staged]
            acked = [number for number in self._acked if number <= self._stored]
            for one in (self._in_flight, self._pending, self._staged, self._acked):
                one.clear()
            self._reported, self._bytes = (), 0
            return OutboxState(rows, acked, self._last, self._stored, self.durable)

    def adopt(self, state: OutboxState) -> None:
        """Continue in the place of another outbox, before the first `put`, beyond the bound if need be.

        It may have resumed from the store already: rows in flight here, or acknowledged, are not sent again.
        """
        with self.changed:
            self.durable, self._last = state.durable, state.last_number
            self._stored = self._flushed = state.stored
            begun = self._in_flight.keys() | self._acked.keys()
            self._acked.update(dict.fromkeys(state.acked))
            self._bytes -= _size(self._pending)
            self._pending.clear()
            for row in state.rows:
                if row.number not in begun:
                    self._bytes += len(row.payload)
                    (self._staged if self._stages and self._is_new(row) else self._pending).append(row)
            self.changed.notify_all()

    # ---- for the sending thread -------------------------------------------------------------------------------------

    def take(self) -> OutboxRow | None:
        """The next row to send; report it with `ack` or `nack`."""
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
        """Rows in flight are sent again, in order and before the rest; return them."""
        with self.changed:
            rows = list(self._in_flight.values())
            self._in_flight.clear()
            self._pending.extendleft(reversed(rows))
            return rows

    def drop(self, row: OutboxRow) -> None:
        """Never send this row, the first one, which was just requeued; it counts as failed."""
        with self.changed:
            if self._pending and self._pending[0] is row:
                self.failed += 1
                self._finish(self._pending.popleft())

    # ---- with the lock ----------------------------------------------------------------------------------------------

    @property
    def _stages(self) -> bool:
        return self.durable and not self._immediate

    @property
    def _full(self) -> bool:
        return len(self) >= self.bound or self._bytes >= self.max_bytes

    def _is_new(self, row: OutboxRow) -> bool:
        return row.number > self._stored

    def _make_room(self) -> bool:
        """Drop the oldest rows that are not in flight; False if all are, so that the new row is dropped."""
        while self._full:
            queue = self._pending or self._staged
            self.dropped += 1
            if not queue:
                return False
            self._finish(queue.popleft())
        return True

    def _finish(self, row: OutboxRow) -> None:
        """The row is finished; if it may be stored, the next commit deletes it."""
        self._bytes -= len(row.payload)
        if row.number <= self._flushed:
            self._acked[row.number] = None
        self.changed.notify_all()


def _size(rows: Iterable[OutboxRow]) -> int:
    return sum(len(row.payload) for row in rows)
