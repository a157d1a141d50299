"""The tracker against a broker that redelivers unacknowledged messages, and a process that may be killed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from stream_gru.connectors.mqtt.ack_tracker import AckTracker
from stream_gru.core.commit_records import ProcessedPackets

_WINDOW = 5


@dataclass
class SentPacket:
    """A message that requires an acknowledgement."""

    mid: int
    message: int
    sent: bool = False


class AckTrackerMachine(RuleBasedStateMachine):
    """Messages are increasing numbers; ``history`` is the committed ones, ``packets`` the packets in the store."""

    @initialize(marks=st.booleans(), lowest=st.booleans())
    def begin(self, marks: bool, lowest: bool) -> None:
        """``marks``: redeliveries carry the DUP flag; ``lowest``: identifiers are reused as soon as possible."""
        self.marks, self.lowest = marks, lowest
        self.history: list[int] = []
        self.packets: dict[int, int] = {}
        self.position = self.message = 0
        self.lost: set[int] = set()
        self.session_of: dict[int, int] = {}
        self.session = self.next_mid = 0
        self.untold = self.stale = False
        self.start()
        self.lose_session()

    # ---- the broker

    def mids(self) -> int:
        """A free packet identifier."""
        used = {packet.mid for packet in self.inflight}
        if self.lowest:
            return next(mid for mid in count(1) if mid not in used)
        while True:
            self.next_mid = self.next_mid % 7 + 1
            if self.next_mid not in used:
                return self.next_mid

    def send(self) -> None:
        """Fill the window."""
        while self.backlog and len(self.inflight) < _WINDOW:
            self.inflight.append(SentPacket(self.mids(), self.backlog.pop(0)))
        for packet in self.inflight:
            if packet not in self.on_wire:
                self.on_wire.append(packet)
                self.wire.append((packet, packet.sent and self.marks))
                packet.sent = True

    def connect(self, session_present: bool) -> None:
        """A new connection."""
        self.wire: list[tuple[SentPacket, bool]] = []
        self.on_wire: list[SentPacket] = []
        self.tracker.connected(session_present)
        self.send()

    @rule(number=st.integers(1, 4))
    def publish(self, number: int) -> None:
        """Messages for us."""
        for _ in range(number):
            self.message += 1
            self.session_of[self.message] = self.session
            self.backlog.append(self.message)
        self.send()

    @rule()
    def cut(self) -> None:
        """The connection breaks; data in flight in both directions is lost."""
        self.connect(True)

    @rule()
    def lose_session(self) -> None:
        """The broker has lost the session: undelivered messages are lost, identifiers restart."""
        if self.session:
            self.lost |= {*(packet.message for packet in self.inflight), *self.backlog}
        self.session += 1
        self.untold, self.stale = True, False
        self.inflight: list[SentPacket] = []
        self.backlog: list[int] = []
        self.next_mid = 0
        self.connect(False)

    # ---- the process

    def start(self) -> None:
        """Start with the state in the store."""
        done = {mid: b"%d" % message for mid, message in self.packets.items()}
        self.tracker = AckTracker(self.position, done, max_done=4 * _WINDOW)
        self.queue: list[tuple[int, int]] = []
        self.handled: list[tuple[int, int]] = []
        self.half_committed: tuple[int, ProcessedPackets] | None = None

    @precondition(lambda self: self.wire)
    @rule(number=st.integers(1, 6))
    def receive(self, number: int) -> None:
        """Packets that have arrived."""
        for packet, again in self.wire[:number]:
            taken = self.tracker.on_message(packet.mid, b"%d" % packet.message, again)
            if taken is not None:
                self.queue.append((taken, packet.message))
        del self.wire[:number]

    @precondition(lambda self: self.queue)
    @rule(number=st.integers(1, 6))
    def handle(self, number: int) -> None:
        """The loop takes some."""
        self.handled += self.queue[:number]
        del self.queue[:number]

    @precondition(lambda self: self.half_committed is None)
    @rule()
    def write(self) -> None:
        """The first half of a commit: processed messages become history."""
        position = self.handled[-1][0] if self.handled else self.position
        receipts = self.tracker.processed_packets(position)
        assert self.tracker.processed_packets(position) == receipts
        if receipts.new_session:
            self.packets.clear()
            self.untold = False
        for mid, digest in receipts.packets.items():
            self.packets.pop(mid, None)
            self.packets[mid] = int(digest)
        assert self.stale or {self.session_of[message] for message in self.packets.values()} <= {self.session}
        self.history += [message for _, message in self.handled]
        self.handled.clear()
        self.position = position
        self.half_committed = position, receipts
        assert self.history == sorted(set(self.history))

    @precondition(lambda self: self.half_committed is not None)
    @rule()
    def acknowledge(self) -> None:
        """The second half."""
        assert self.half_committed is not None
        self.tracker.processed(self.half_committed[0])
        again = self.tracker.processed_packets(self.half_committed[0])
        assert not again.packets
        self.half_committed = None

    @precondition(lambda self: self.wire and self.half_committed is None)
    @rule(number=st.integers(1, 6))
    def work(self, number: int) -> None:
        """From the network to the store."""
        self.receive(number)
        self.handle(number)
        self.write()

    @rule(arrive=st.booleans())
    def turn(self, arrive: bool) -> None:
        """Acknowledgements are sent; the broker may never receive them, and the connection is dead then."""
        acks = self.tracker.pending_acks()
        acknowledged, rest = self.inflight[: len(acks)], self.inflight[len(acks) :]
        assert acks == [packet.mid for packet in acknowledged]
        assert {packet.message for packet in acknowledged} <= set(self.history)
        if arrive:
            self.inflight = rest
        self.send() if arrive else self.cut()

    @rule(session_present=st.booleans())
    def crash(self, session_present: bool) -> None:
        """Killed: uncommitted messages are redelivered, unless the session is lost as well.

        If the loss was seen but not yet stored, old packets stay in the store.
        """
        self.stale = self.stale or self.untold
        self.start()
        self.cut() if session_present else self.lose_session()

    def teardown(self) -> None:
        """At the end every message has been passed on once, except those lost with a session."""
        if not hasattr(self, "half_committed"):
            return
        for _ in range(self.message + 1):
            if self.half_committed:
                self.acknowledge()
            self.receive(len(self.wire))
            self.handle(len(self.queue))
            self.write()
            self.acknowledge()
            self.turn(True)
        assert not self.inflight
        assert set(range(1, self.message + 1)) - set(self.history) <= self.lost
        assert not self.tracker.processed_packets(self.position).new_session


AckTrackerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40)
TestAckTracker = AckTrackerMachine.TestCase
