"""The outbox against a simple model of it, of the store, and of a peer that acknowledges, refuses and disconnects."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stream_gru.connectors.sinks.outbox import Outbox
from stream_gru.core.commit_records import FlushResult, OutboxRow, SinkCheckpoint


class OutboxMachine(RuleBasedStateMachine):
    """Rows are numbered texts; ``open`` are the unacknowledged ones, ``table`` is the content of the store."""

    @initialize(bound=st.integers(1, 6), drop=st.booleans(), immediate=st.booleans(), durable=st.integers(0, 4))
    def begin(self, bound: int, drop: bool, immediate: bool, durable: int) -> None:
        """A new outbox with an empty store or, rarely, without one."""
        self.options = {"drop_oldest": drop, "immediate": immediate}
        self.bound, self.drop, self.durable = bound, drop, bool(durable)
        self.free = immediate or not self.durable
        self.table: dict[int, bytes] = {}
        self.counter = 0
        self.made = 0
        self.stored: set[int] = set()  # numbers that a commit has reported as stored
        self.discarded = self.failed = 0
        self.open: dict[int, bytes] = {}
        self.under_way: list[OutboxRow] = []
        self.flushed: FlushResult | None = None
        self.written = False
        self.start()

    def start(self) -> None:
        """A process that starts with the content of the store."""
        self.outbox = Outbox(self.bound, **self.options)
        kept = [OutboxRow("t", text, "k", number) for number, text in sorted(self.table.items())]
        self.outbox.resume(SinkCheckpoint(unacked=kept, last_number=self.counter) if self.durable else None)
        self.open = dict(sorted(self.table.items()))
        self.stored = set(self.table)
        self.last = self.counter if self.durable else 0
        self.discarded = self.failed = 0
        self.under_way.clear()
        self.flushed, self.written = None, False

    @precondition(lambda self: not self.written)
    @rule(count=st.integers(1, 4))
    def put(self, count: int) -> None:
        """More rows, with or without space; a flush before is abandoned."""
        self.flushed = None
        rows = [OutboxRow("t", b"%d" % (self.made + n), "k") for n in range(count)]
        self.made += count
        self.outbox.put(rows)
        busy = {row.number for row in self.under_way}
        for row in rows:
            full = self.drop and len(self.open) >= self.bound
            while self.drop and len(self.open) >= self.bound and self.open.keys() - busy:
                self.open.pop(min(self.open.keys() - busy))
                self.discarded += 1
            if full and len(self.open) >= self.bound:
                self.discarded += 1
                continue
            assert row.number > self.last
            self.last = row.number
            self.open[row.number] = row.payload

    @precondition(lambda self: self.open)
    @rule(count=st.integers(1, 3))
    def take(self, count: int) -> None:
        """The next rows are sent."""
        for _ in range(count):
            self.take_one()

    def take_one(self) -> None:
        """The oldest row that is not in flight, and never one that is not stored."""
        busy = {row.number for row in self.under_way}
        free = sorted(n for n in self.open.keys() - busy if self.free or n in self.stored)
        row = self.outbox.take()
        assert (row.number if row else None) == (free[0] if free else None)
        if row is not None:
            assert row.payload == self.open[row.number]
            assert self.free or row.number in self.stored
            self.under_way.append(row)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), refused=st.booleans())
    def settle(self, data: st.DataObject, refused: bool) -> None:
        """An answer to any row in flight."""
        self.answer(self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1))), refused)

    def answer(self, row: OutboxRow, refused: bool) -> None:
        """Record an answer of the peer to a row."""
        for _ in range(2):  # a second answer has no effect
            (self.outbox.nack if refused else self.outbox.ack)(row)
        del self.open[row.number]
        self.failed += refused

    @precondition(lambda self: self.under_way)
    @rule(give_up=st.booleans())
    def connect(self, give_up: bool) -> None:
        """A new connection: all rows in flight must be resent, except possibly the first."""
        assert self.outbox.requeue() == self.under_way
        if give_up:
            self.outbox.drop(self.under_way[0])
            del self.open[self.under_way[0].number]
            self.failed += 1
        self.under_way.clear()

    @precondition(lambda self: not self.written)
    @rule()
    def flush(self) -> None:
        """What the next commit will store; an abandoned commit changes nothing."""
        self.flushed = self.outbox.flush()
        self.written = False
        if self.durable:
            unacked = {row.number: row.payload for row in self.flushed.unacked}
            assert list(unacked) == sorted(unacked)
            assert set(self.flushed.acked) == self.table.keys() - self.open.keys()
            kept = {n: text for n, text in self.table.items() if n not in self.flushed.acked}
            assert kept | unacked == self.open
            assert not kept.keys() & unacked.keys()

    @precondition(lambda self: self.flushed is not None and not self.written)
    @rule()
    def write(self) -> None:
        """The transaction."""
        assert self.flushed is not None
        self.written = True
        if self.durable:
            for number in self.flushed.acked:
                del self.table[number]
            for row in self.flushed.unacked:
                self.table[row.number] = row.payload
                self.counter = max(self.counter, row.number)

    @precondition(lambda self: self.written)
    @rule()
    def committed(self) -> None:
        """The end of a commit."""
        self.outbox.committed()
        self.stored = set(self.table)
        self.flushed, self.written = None, False

    @precondition(lambda self: not self.written)
    @rule(late=st.integers(0, 2))
    def commit(self, late: int) -> None:
        """A whole commit, with answers while it is written."""
        self.flush()
        self.write()
        for _ in range(late):
            self.take_one()
            if self.under_way:
                self.answer(self.under_way.pop(0), False)
        self.committed()

    @precondition(lambda self: self.flushed is None and self.open)
    @rule()
    def hand_over(self) -> None:
        """Another outbox replaces this one; the old one gets late answers."""
        left, old = self.outbox.handoff(), self.outbox
        assert len(left.rows) == len(self.open)
        for row in self.under_way:
            old.ack(row)
        assert old.flush() == FlushResult(unacked=[], acked=())
        self.outbox = Outbox(self.bound, **self.options)
        self.outbox.adopt(left)
        self.outbox.resume(None)
        self.under_way.clear()
        self.discarded = self.failed = 0

    @precondition(lambda self: self.durable and self.table)
    @rule()
    def crash(self) -> None:
        """Killed at any moment, also within a commit: only the store survives, and all of it is resent."""
        self.start()

    @invariant()
    def nothing_is_lost(self) -> None:
        """Unacknowledged rows are kept, dropped ones are counted, and a full outbox is not ready unless it may drop."""
        assert len(self.outbox) == len(self.open)
        assert (self.outbox.dropped, self.outbox.failed) == (self.discarded, self.failed)
        assert self.outbox.ready == (self.drop or len(self.open) < self.bound)


OutboxMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40)
TestOutbox = OutboxMachine.TestCase
