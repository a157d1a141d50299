"""Publishes each output as JSON to a topic of its stream, and says who is there.

A row is kept until the broker has confirmed it, and sent again on the next connection until then: at least once on the
wire, and the ``id`` tells a row that comes twice.

Decision: with ``drop_oldest`` a broker that is away holds up nobody: `flush` then does not wait for it, and what
overflows is counted as discarded.  With ``block`` nothing is acknowledged before the broker has it.

Decision: rows that were not confirmed when a connection broke are sent anew from here and not by paho, which would send
them without asking what the new connection lets through: one packet too long for it, and it is cut again for ever.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stream_gru.config.live import BrokerConfig, MqttSinkConfig
from stream_gru.errors import SinkPending, SinkUnavailable
from stream_gru.manifest import Manifest
from stream_gru.mqtt.access import client_id
from stream_gru.mqtt.connection import Connection
from stream_gru.mqtt.handlers import Handlers, Will
from stream_gru.mqtt.outbox import Outbox, Outgoing
from stream_gru.mqtt.topics import fill_stream
from stream_gru.sinks.encode_json import JsonEncoder
from stream_gru.sinks.home_assistant import discovery
from stream_gru.sinks.leftovers import Leftovers, signed
from stream_gru.times import format_iso
from stream_gru.types import PredictionBatch, SinkHealth

log = logging.getLogger(__name__)

_ONLINE, _OFFLINE = b"online", b"offline"
_SLICE_S = 0.1
# `close` takes at most this long; the rows may have so much of it, then the notices of what goes offline.
_CLOSE_S = 1.0
_CLOSE_ROWS_S, _CLOSE_NOTICES_S = 0.5, 0.25
_MOST_UNDER_WAY = 500
_MOST_UNDER_WAY_311 = 20
# Connections that the same output may cost before it is given up: some brokers cut us for what they do not want.
_CUTS_OF_ONE = 4
_TRUSTED_AFTER = 20
# Fixed header, lengths, packet identifier and the properties without their texts, at their longest.
_PACKET_BYTES = 64


class MqttSink:
    """Rows to ``topic``; ``online`` and ``offline`` of the daemon and of each stream, retained, to two others.

    ``manifest`` is needed for Home Assistant only.  ``stopping`` is asked while `write` waits for room, so that a
    daemon can end while its broker is away.
    """

    def __init__(
        self,
        config: MqttSinkConfig,
        broker: BrokerConfig,
        *,
        name: str,
        manifest: Manifest | None = None,
        stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._broker, self._name = config, broker, name
        self._manifest, self._stopping, self._clock = manifest, stopping, clock
        self._encoder = JsonEncoder()
        self._outbox = Outbox(config.queue_messages)
        self._mark = 0  # newest row of a flush that is pending
        self._streams: dict[str, bool] = {}
        self._said: set[str] = set()
        self._suspect: Outgoing | None = None
        self._blamed = self._one_by_one = 0
        self._opened = False
        own_id = client_id(broker, name, "out")
        self._leftovers = Leftovers(config.availability_topic, own_id, clock)
        self._connection = Connection(
            broker,
            own_id,
            Handlers(
                connected=self._on_connected,
                message=self._on_message,
                published=self._on_published,
                subscribed=self._leftovers.subscribed,
                unsubscribed=self._leftovers.unsubscribed,
                turn=self._on_turn,
            ),
            will=Will(config.status_topic, _OFFLINE),
            clock=clock,
        )

    @property
    def connection(self) -> Connection:
        """The connection, for those who want to know what the broker lets through."""
        return self._connection

    def open(self) -> None:
        """Begin to connect; a broker that is not there is waited for.

        Raises ConfigError when user, password or certificates cannot be read.
        """
        if not self._opened:
            self._connection.open()
            self._opened = True

    def write(self, batch: PredictionBatch) -> None:
        """Have all rows published, in order; waits for room when the queue is full and ``when_full`` is ``block``.

        Raises SinkUnavailable when it is not open, SinkPending when the daemon stops meanwhile, TakenOver.
        """
        self._require_open()
        if not len(batch):
            return
        drop_oldest = self._config.when_full == "drop_oldest"
        topics = [fill_stream(self._config.topic, stream) for stream in batch.streams]
        lines = self._encoder.encode(batch).splitlines()
        rows = zip(batch.stream.tolist(), format_iso(batch.time_ns), lines, strict=True)
        for index, when, line in rows:
            stream = batch.streams[index]
            if not self._streams.get(stream):
                self.stream_status(stream, True)
            row = Outgoing(topics[index], line, f"{stream}/{when}")
            while not self._outbox.put(row, drop_oldest=drop_oldest):
                self._wait_for_room()
        self._connection.wake()

    def flush(self) -> int:
        """Return how many bytes were confirmed.

        Raises SinkPending while rows written before the first flush that was pending are not confirmed, unless the
        broker is away and ``when_full`` is ``drop_oldest``; raises TakenOver.
        """
        if self._opened:
            self._require_open()
            self._connection.wake()
            self._mark = self._mark or self._outbox.last
            if not self._outbox.settled_to(self._mark) and not self._holds_up_nobody:
                raise SinkPending(f"sink {self._name}: {len(self._outbox)} outputs wait for the broker")
            self._mark = 0
        return self._outbox.confirmed_bytes

    def stream_status(self, stream: str, online: bool) -> None:
        """Say that a stream is there, or silent; an output of it says that it is there again.

        That a stream is silent of which there never was an output is no news.
        """
        new = stream not in self._streams
        if new and not online:
            return
        self._streams[stream] = online
        self._say_availability(stream, online)
        if new:
            self._announce(stream)
        self._connection.wake()

    def close(self) -> None:
        """Give the broker a moment to confirm what is left, say ``offline`` of all streams and of us, and disconnect.

        Takes a second at most; may be called twice.
        """
        if not self._opened:
            return
        end = self._clock() + _CLOSE_S
        if self._connection.connected:
            self._connection.wake()
            self._outbox.wait(lambda: not len(self._outbox), _CLOSE_ROWS_S)
        for stream in self._streams:
            self.stream_status(stream, False)
        if self._connection.connected:
            self._outbox.wait(lambda: self._outbox.idle, _CLOSE_NOTICES_S)
        if len(self._outbox):
            log.warning("sink %s: %d outputs were not confirmed", self._name, len(self._outbox))
        self._opened = False
        self._connection.close(self._say_goodbye, max(0.0, end - self._clock()))

    def left(self) -> list[Outgoing]:
        """After `close`: outputs that were never confirmed, for a sink that takes the place of this one."""
        return self._outbox.leave()

    def take_over(self, rows: list[Outgoing]) -> None:
        """Before `open`: publish these first, on the topics they were meant for."""
        self._outbox.inherit(rows)

    def health(self) -> SinkHealth:
        """Whether the broker is there, and what waits."""
        return SinkHealth(
            connected=self._is_there,
            queued=len(self._outbox),
            failed=self._outbox.failed,
            discarded=self._outbox.discarded,
            reconnects=self._connection.reconnects,
        )

    @property
    def _is_there(self) -> bool:
        return self._connection.connected and self._connection.alive

    @property
    def _holds_up_nobody(self) -> bool:
        return self._config.when_full == "drop_oldest" and not self._is_there

    def _require_open(self) -> None:
        if not self._opened:
            raise SinkUnavailable(f"sink {self._name}: not open")
        self._connection.require_own_name(f"sink {self._name}")

    def _say_availability(self, stream: str, online: bool) -> None:
        if self._config.availability_topic:
            self._outbox.notice(fill_stream(self._config.availability_topic, stream), _ONLINE if online else _OFFLINE)

    def _wait_for_room(self) -> None:
        self._require_open()
        if self._stopping():
            raise SinkPending(
                f"sink {self._name}: the queue of {self._outbox.bound} outputs is full, and we shall stop"
            )
        self._connection.wake()
        self._outbox.wait(lambda: len(self._outbox) < self._outbox.bound, _SLICE_S)

    # What follows runs on the thread of the connection.

    def _on_connected(self, client: Client, _session_present: bool) -> None:
        client.drop_out_messages()
        unanswered = self._outbox.recall()
        self._look_for_culprit(unanswered)
        for item in unanswered:
            if not item.key:  # what is true no longer is replaced below
                self._outbox.notice(item.topic, item.payload)
        self._outbox.notice(self._config.status_topic, _ONLINE)
        for stream, online in list(self._streams.items()):
            self._say_availability(stream, online)
            self._announce(stream)
        self._leftovers.connected(client, cut=self._connection.cuts > 0)
        if self._discovers:
            client.subscribe(self._birth_topic, qos=1)

    def _look_for_culprit(self, unanswered: list[Outgoing]) -> None:
        """When the broker cuts one connection after the other, send one by one, and give up what it always cuts for."""
        if not self._connection.cuts or not unanswered:
            return
        first, before = unanswered[0], self._suspect
        same = before is not None and (before.topic, before.key) == (first.topic, first.key)
        self._suspect, self._blamed = first, self._blamed + 1 if same else 1
        self._one_by_one = _TRUSTED_AFTER
        if self._blamed >= _CUTS_OF_ONE:
            self._blamed = 0
            text = f"the broker closes the connection for {len(first.payload)} bytes to {first.topic!r}: given up"
            self._say_once(first.topic, text)
            self._outbox.give_up(first)

    def _on_message(self, message: MQTTMessage) -> None:
        """Home Assistant was started and wants to know everything again; or a stream is online since an earlier run."""
        self._connection.acknowledge(message)
        if message.topic == self._birth_topic:
            if bytes(message.payload) == _ONLINE:
                for stream in list(self._streams):
                    self._announce(stream)
        elif message.topic != self._config.status_topic:
            self._take_back(self._leftovers.stream_of(message))

    def _take_back(self, stream: str) -> None:
        """Say that a stream is offline, unless we know better."""
        if stream and stream not in self._streams:
            self._say_availability(stream, False)
            online = self._streams.get(stream)
            if online is not None:  # its first output came in between
                self._say_availability(stream, online)

    @property
    def _birth_topic(self) -> str:
        return f"{self._config.discovery_prefix}/status"

    @property
    def _discovers(self) -> bool:
        return self._config.home_assistant and self._manifest is not None

    def _announce(self, stream: str) -> None:
        if self._config.home_assistant and self._manifest is not None:
            self._outbox.notice(*discovery(self._manifest, self._config, stream))

    def _on_turn(self, client: Client) -> None:
        self._leftovers.turn(client)
        limits = self._connection.limits
        most = max(1, min(_MOST_UNDER_WAY, limits.receive_maximum, self._outbox.bound // 2))
        if self._broker.protocol != "5":
            most = min(most, _MOST_UNDER_WAY_311)
        if self._one_by_one:
            most = 1
        while self._outbox.under_way < most:
            item = self._outbox.take()
            if item is None:
                return
            self._publish(client, item)

    def _publish(self, client: Client, item: Outgoing) -> None:
        limits = self._connection.limits
        label = item.key or self._connection.client_id
        size = len(item.payload) + len(item.topic.encode()) + len(label.encode()) + _PACKET_BYTES
        if size > limits.max_packet_bytes:
            self._say_once("size", f"the broker takes at most {limits.max_packet_bytes} bytes, an output has {size}")
            self._outbox.refused(item)
            return
        qos = min(self._config.qos if item.key else 1, limits.max_qos)
        retain = limits.retain and (self._config.retain if item.key else True)
        try:
            info = client.publish(item.topic, item.payload, qos, retain, self._properties(item))
        except ValueError as error:
            self._say_once(item.topic, f"topic {item.topic!r} cannot be published to: {error}")
            self._outbox.refused(item)
            return
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise RuntimeError(f"packet identifier {info.mid} is in use")
        self._outbox.sent(info.mid, item)

    def _properties(self, item: Outgoing) -> Properties | None:
        if self._broker.protocol != "5":
            return None
        if not item.key:
            return signed(self._connection.client_id)
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.PayloadFormatIndicator = 1
        properties.ContentType = "application/json"
        properties.UserProperty = ("id", item.key)
        if self._config.expiry_s:
            properties.MessageExpiryInterval = self._config.expiry_s
        return properties

    def _on_published(self, mid: int, refusal: str) -> None:
        item = self._outbox.settled(mid)
        if item is None:
            return
        if refusal:
            self._say_once(item.topic, f"the broker refused an output to {item.topic}: {refusal}")
            self._outbox.refused(item)
            if self._connection.cuts and not item.key:
                self._outbox.give_up(item)  # it may be what we are cut for
        else:
            self._outbox.confirmed(item)
            self._one_by_one = max(0, self._one_by_one - 1)

    def _say_once(self, key: str, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            log.error("sink %s: %s; said once", self._name, text)

    def _say_goodbye(self, client: Client) -> None:
        limits = self._connection.limits
        # What could not be confirmed is said once more, so that a broker that is only behind reads it in the end:
        # without acknowledgement, as more may be under way than it allows.
        idle = self._outbox.idle
        if self._config.availability_topic and not idle:
            for stream in list(self._streams):
                topic = fill_stream(self._config.availability_topic, stream)
                client.publish(topic, _OFFLINE, 0, limits.retain)
        client.publish(self._config.status_topic, _OFFLINE, min(int(idle), limits.max_qos), limits.retain)
