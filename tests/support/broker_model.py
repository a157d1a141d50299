"""A broker that sends again what was not acknowledged, and a source that listens to it, both without a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from stream_gru.connectors.mqtt.ack_tracker import Ledger
from stream_gru.core.commit_records import ProcessedPackets
from stream_gru.core.types import Position, RawMessage, SourceHealth

WINDOW = 5
SOURCE = "b"


@dataclass
class Packet:
    """A message under way; ``sent`` before, so that the next time is a repetition."""

    mid: int
    number: int
    payload: bytes
    sent: bool = False


class BrokerModel:
    """Keeps messages for one client, by a session; identifiers are used again soon.

    ``acknowledged`` hears the number of each message that the client has acknowledged.
    """

    def __init__(self, acknowledged: Callable[[int], None]) -> None:
        self._acknowledged = acknowledged
        self.published = 0
        self.lost: set[int] = set()
        self.backlog: list[tuple[int, bytes]] = []
        self.inflight: list[Packet] = []
        self.wire: list[Packet] = []
        self._on_wire: list[Packet] = []
        self._mid = 0

    def publish(self, payload: bytes) -> int:
        """Somebody has a message for the client; return its number."""
        self.published += 1
        self.backlog.append((self.published, payload))
        self._send()
        return self.published

    def connect(self) -> None:
        """A new connection: what was on the way is sent again."""
        self.wire, self._on_wire = [], []
        self._send()

    def lose_session(self) -> None:
        """Forget what was not delivered, and begin identifiers anew."""
        self.lost |= {*(packet.number for packet in self.inflight), *(number for number, _ in self.backlog)}
        self.backlog, self.inflight = [], []
        self._mid = 0
        self.connect()

    def acknowledge(self, mid: int) -> None:
        """The client has acknowledged a packet, which must be one that it was sent."""
        packet = next(one for one in self.inflight if one.mid == mid)
        assert packet in self._on_wire
        assert packet not in self.wire
        self._acknowledged(packet.number)
        self.inflight.remove(packet)
        self._send()

    def _send(self) -> None:
        while self.backlog and len(self.inflight) < WINDOW:
            self._mid = self._mid % (WINDOW + 2) + 1
            while self._mid in {packet.mid for packet in self.inflight}:
                self._mid = self._mid % (WINDOW + 2) + 1
            self.inflight.append(Packet(self._mid, *self.backlog.pop(0)))
        for packet in self.inflight:
            if packet not in self._on_wire:
                self._on_wire.append(packet)
                self.wire.append(packet)


class BrokerSource:
    """What `connectors.sources.mqtt` does with a real one: a ledger, a queue; acknowledgements have a turn."""

    def __init__(self, broker: BrokerModel) -> None:
        self._broker = broker
        self._packets: Mapping[int, bytes] = {}
        self._queue: list[RawMessage] = []
        self._ledger = Ledger()

    def resume(self, packets: Mapping[int, bytes]) -> None:
        """What earlier processes had."""
        self._packets = packets

    def open(self, position: Position | None) -> None:
        """Number messages on, and connect with the session there."""
        self._ledger = Ledger(0 if position is None else position.offset, self._packets, done_kept=4 * WINDOW)
        self.connect()

    def connect(self, *, session_present: bool = True) -> None:
        """A new connection."""
        if session_present:
            self._broker.connect()
        else:
            self._broker.lose_session()
        self._ledger.connected(session_present)

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """What has arrived."""
        wire, self._broker.wire = self._broker.wire, []
        for packet in wire:
            number = self._ledger.arrived(packet.mid, packet.payload, packet.sent)
            packet.sent = True
            if number is not None:
                self._queue.append(RawMessage(packet.payload, position=Position(SOURCE, number), source=SOURCE))
        taken, self._queue = self._queue[:limit], self._queue[limit:]
        return taken

    def processed_packets(self, position: Position) -> ProcessedPackets:
        """As the ledger says."""
        return self._ledger.processed_packets(position.offset)

    def commit(self, position: Position) -> None:
        """The ledger notes it; nothing is acknowledged before `turn`."""
        self._ledger.processed(position.offset)

    def turn(self) -> None:
        """Acknowledgements go out."""
        for mid in self._ledger.take_acks():
            self._broker.acknowledge(mid)

    def close(self) -> None:
        """Nothing is open."""

    def health(self) -> SourceHealth:
        """Well."""
        return SourceHealth()
