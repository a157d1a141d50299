"""Publishes the rows of an outbox, and retained messages before them, over one connection after the other.

Decision: rows that were not acknowledged when a connection broke are sent again from here and not by paho, which would
send them without asking what the new connection accepts: one packet too long for it would cut it again, without end.
"""

from __future__ import annotations

import threading

from paho.mqtt.client import Client
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stream_gru.connectors.mqtt.paho_client import Limits
from stream_gru.connectors.mqtt.reconnect import CutSuspect
from stream_gru.connectors.sinks.outbox import Outbox
from stream_gru.core.commit_records import OutboxRow
from stream_gru.core.log_limiter import LogOnce

SENDER = "by"
"""The user property with the label of the publisher of a retained message (MQTT 5)."""
_MAX_IN_FLIGHT = 500
_MAX_IN_FLIGHT_311 = 20
# Fixed header, lengths, packet identifier and the properties without their texts, at their longest.
_PACKET_BYTES = 64


class Publisher:
    """All methods belong to the thread of the connection.

    ``sender``: the label of this client.

    Rows go with ``qos``, ``retain`` and, unless 0, ``expiry_s``; retained messages with QoS 1.  ``newest``: MQTT 5.
    """

    def __init__(
        self,
        outbox: Outbox,
        retained: RetainedOutbox,
        complain: LogOnce,
        *,
        sender: str,
        newest: bool,
        qos: int,
        retain: bool,
        expiry_s: int,
    ) -> None:
        self._outbox, self._retained, self._complain = outbox, retained, complain
        self._sender, self._newest = sender, newest
        self._qos, self._retain, self._expiry_s = qos, retain, expiry_s
        self._suspect = CutSuspect()
        self._limits, self._short_connections = Limits(), 0
        self.in_flight: dict[int, OutboxRow] = {}  # by packet identifier

    def connected(self, client: Client, limits: Limits, short_connections: int) -> None:
        """A new connection: what was in flight is sent again; ``short_connections`` in a row were cut before."""
        client.drop_out_messages()
        self._limits, self._short_connections = limits, short_connections
        unanswered = list(self.in_flight.values())
        self.in_flight.clear()
        self._outbox.requeue()
        self._retained.disconnected()
        culprit = self._suspect.connected(short_connections, unanswered)
        if culprit is not None:
            self._drop(culprit)
        for item in unanswered:
            if not item.key:  # the caller replaces what is no longer true
                self._retained.put(item.topic, item.payload)

    def send(self, client: Client) -> None:
        """Publish as much as the broker allows at once."""
        most = max(1, min(_MAX_IN_FLIGHT, self._limits.receive_maximum, self._outbox.bound // 2))
        if not self._newest:
            most = min(most, _MAX_IN_FLIGHT_311)
        if self._suspect.one_by_one:
            most = 1
        while len(self.in_flight) < most:
            item = self._retained.take() or self._outbox.take()
            if item is None:
                return
            self._publish(client, item)

    def published(self, mid: int, refusal: str) -> None:
        """The broker has a message, or says why it does not accept it."""
        item = self.in_flight.pop(mid, None)
        if item is None:
            return
        if refusal:
            size = len(item.payload)
            self._complain(item.topic, f"the broker refused an output to {item.topic}: {refusal} ({size} bytes)")
            self._refused(item)
            if self._short_connections and not item.key:
                self._retained.block(item.topic)  # it may be what cuts the connection
            return
        if item.key:
            self._outbox.ack(item)
        else:
            self._retained.done()
        self._suspect.acked()

    def _publish(self, client: Client, item: OutboxRow) -> None:
        limits = self._limits
        label = item.key or self._sender
        size = len(item.payload) + len(item.topic.encode()) + len(label.encode()) + _PACKET_BYTES
        if size > limits.max_packet_bytes:
            self._complain("size", f"the broker accepts {limits.max_packet_bytes} bytes at most, an output has {size}")
            self._refused(item)
            return
        qos = min(self._qos if item.key else 1, limits.max_qos)
        retain = limits.retain and (self._retain if item.key else True)
        try:
            info = client.publish(item.topic, item.payload, qos, retain, self._properties(item))
        except ValueError as error:
            self._complain(item.topic, f"topic {item.topic!r} cannot be published to: {error}")
            self._refused(item)
            return
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise RuntimeError(f"packet identifier {info.mid} is in use")
        self.in_flight[info.mid] = item

    def _properties(self, item: OutboxRow) -> Properties | None:
        if not self._newest:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if not item.key:
            properties.UserProperty = (SENDER, self._sender)
            return properties
        properties.PayloadFormatIndicator = 1
        properties.ContentType = "application/json"
        properties.UserProperty = ("id", item.key)
        if self._expiry_s:
            properties.MessageExpiryInterval = self._expiry_s
        return properties

    def _refused(self, item: OutboxRow) -> None:
        if item.key:
            self._outbox.nack(item)
        else:
            self._retained.done()

    def _drop(self, item: OutboxRow) -> None:
        """Never send an output again that cuts every connection."""
        self._complain(item.topic, f"no connection outlives {len(item.payload)} bytes to {item.topic!r}: dropped")
        if item.key:
            self._outbox.drop(item)
        else:
            self._retained.block(item.topic)


class RetainedOutbox:
    """Status messages that a broker retains: only the latest of each topic is sent.

    Any thread puts them in, one takes them and reports their acknowledgements.  ``changed`` guards everything in here
    and is notified after each acknowledgement.
    """

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._pending: dict[str, OutboxRow] = {}
        self._blocked: set[str] = set()
        self._in_flight = 0

    @property
    def idle(self) -> bool:
        """Whether everything was sent and acknowledged."""
        with self._changed:
            return not (self._pending or self._in_flight)

    def put(self, topic: str, payload: bytes) -> None:
        """Publish this on ``topic``, in place of what is still pending there."""
        with self._changed:
            self._pending.pop(topic, None)
            if topic not in self._blocked:
                self._pending[topic] = OutboxRow(topic, payload)

    def take(self) -> OutboxRow | None:
        """The next message to send; call `done` when it was acknowledged or refused."""
        with self._changed:
            if not self._pending:
                return None
            self._in_flight += 1
            return self._pending.pop(next(iter(self._pending)))

    def done(self) -> None:
        """One was acknowledged or refused."""
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def disconnected(self) -> None:
        """Nothing is in flight any more."""
        with self._changed:
            self._in_flight = 0

    def block(self, topic: str) -> None:
        """Never publish on this topic again."""
        with self._changed:
            self._blocked.add(topic)
            self._pending.pop(topic, None)
            self._changed.notify_all()
