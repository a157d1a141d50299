"""Publishes each output as JSON to a topic of its stream, and says who is there.

A row is kept until the broker has confirmed it, in the store too where there is one, and sent again on the next
connection or after the next start until then: at least once on the wire, and the ``id`` tells a row that comes twice.

Decision: nobody waits for the broker.  With ``drop_oldest`` what overflows is counted as discarded; with ``block`` a
full queue says that it is not `ready`, and nothing is read until it is.

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

from stream_gru.config.run_schema import BrokerConfig, MqttSinkConfig
from stream_gru.config.topic_filters import fill_stream
from stream_gru.connectors.mqtt.auth import client_id
from stream_gru.connectors.mqtt.callbacks import Handlers, Will
from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.connectors.mqtt.retained_outbox import Notices
from stream_gru.connectors.sinks.availability import Presence
from stream_gru.connectors.sinks.encode_json import JsonEncoder
from stream_gru.connectors.sinks.home_assistant import discovery
from stream_gru.connectors.sinks.outbox import Left, Outbox
from stream_gru.connectors.sinks.stale_availability import Leftovers, signed
from stream_gru.core.commit_records import FlushResult, OutboxRow, SinkCheckpoint
from stream_gru.core.errors import SinkUnavailable, StateError
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import PredictionBatch, SinkHealth
from stream_gru.model.manifest import Manifest

log = logging.getLogger(__name__)

_ONLINE, _OFFLINE = b"online", b"offline"
# `close` takes at most this long; the rows may have so much of it, then the notices of what goes offline.
_CLOSE_S = 1.0
_CLOSE_ROWS_S, _CLOSE_NOTICES_S = 0.5, 0.25
_MOST_UNDER_WAY = 500
_MOST_UNDER_WAY_311 = 20
# Connections that the same output may cost before it is given up: some brokers cut us for what they do not want, or
# answer it in a way that is not understood.
_CUTS_OF_ONE = 4
_TRUSTED_AFTER = 20
_MOST_SAID = 1000  # complaints that are said once each
# Fixed header, lengths, packet identifier and the properties without their texts, at their longest.
_PACKET_BYTES = 64


class MqttSink:
    """Rows to ``topic``; ``online`` and ``offline`` of the daemon and of each stream, retained, to two others.

    ``manifest`` is needed for Home Assistant only; ``immediate``: a row may be published before it is stored.
    """

    def __init__(
        self,
        config: MqttSinkConfig,
        broker: BrokerConfig,
        *,
        name: str,
        manifest: Manifest | None = None,
        immediate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._broker, self._name = config, broker, name
        self._manifest, self._clock = manifest, clock
        self._encoder = JsonEncoder()
        self._outbox = Outbox(config.queue_size, drop_oldest=config.when_full == "drop_oldest", immediate=immediate)
        self._notices = Notices(self._outbox.changed)
        self._under_way: dict[int, OutboxRow] = {}  # by packet identifier
        self._streams = Presence()
        self._said: set[str] = set()
        self._suspect: OutboxRow | None = None
        self._blamed = self._one_by_one = 0
        self._opened = False
        own_id = client_id(broker, "sink", name)
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

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Begin to connect; a broker that is not there is waited for.  What ``checkpoint`` has goes first.

        Raises ConfigError when user, password or certificates cannot be read, StateError for outputs of another kind.
        """
        if self._opened:
            return
        if checkpoint is not None and not all(row.topic for row in checkpoint.unacked):
            raise StateError(
                f"sink {self._name}: expected stored outputs for a broker, got some of another kind; "
                f"give the sink a name that none had before"
            )
        self._outbox.resume(checkpoint)
        self._connection.open()
        self._opened = True

    def ready(self) -> bool:
        """Whether the queue has room."""
        return self._outbox.ready

    def write(self, batch: PredictionBatch) -> None:
        """Have all rows published, in order.  Raises SinkUnavailable when it is not open, TakenOver."""
        self._require_open()
        if not len(batch):
            return
        topics = [fill_stream(self._config.topic, stream) for stream in batch.stream_names]
        lines = self._encoder.encode(batch).splitlines()
        columns = zip(batch.stream_index.tolist(), format_iso(batch.time_ns), lines, strict=True)
        rows = [OutboxRow(topics[index], line, f"{batch.stream_names[index]}/{when}") for index, when, line in columns]
        for index in dict.fromkeys(batch.stream_index.tolist()):
            if not self._streams.get(batch.stream_names[index]):
                self.stream_status(batch.stream_names[index], True)
        self._outbox.put(rows)
        self._connection.wake()

    def flush(self) -> FlushResult:
        """Return what the store shall keep until the broker has it.  Raises TakenOver."""
        if self._opened:
            self._require_open()
        return self._outbox.flush()

    def committed(self) -> None:
        """Publish what the last `flush` told."""
        self._outbox.committed()
        self._connection.wake()

    def stream_status(self, stream: str, online: bool) -> None:
        """Say that a stream is there, or silent; an output of it says that it is there again.

        That a stream is silent of which there never was an output is no news.
        """
        new = self._streams.get(stream) is None
        if new and not online:
            return
        displaced = self._streams.put(stream, online)
        self._say_availability(stream, online)
        if displaced:
            self._say_availability(displaced, False)
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
            self._wait(lambda: self._outbox.quiet, _CLOSE_ROWS_S)
        for stream in self._streams.names():
            self.stream_status(stream, False)
        if self._connection.connected:
            self._wait(lambda: self.idle, _CLOSE_NOTICES_S)
        if len(self._outbox):
            then = "; the store keeps them" if self._outbox.durable else ""
            log.warning("sink %s: %d outputs were not confirmed%s", self._name, len(self._outbox), then)
        self._opened = False
        self._connection.close(self._say_goodbye, max(0.0, end - self._clock()))

    def left(self) -> Left:
        """After `close`: what is not finished, for a sink that takes the place of this one."""
        return self._outbox.leave()

    def take_over(self, left: Left) -> None:
        """Before anything is written: publish these first, on the topics they were meant for."""
        self._outbox.take_over(left)

    def health(self) -> SinkHealth:
        """Whether the broker is there, and what waits."""
        return SinkHealth(
            connected=self._connection.connected and self._connection.alive,
            queued=len(self._outbox),
            failed=self._outbox.failed,
            dropped=self._outbox.discarded,
            reconnects=self._connection.reconnects,
        )

    @property
    def idle(self) -> bool:
        """Whether all that may be said was said and answered."""
        return self._outbox.quiet and self._notices.idle

    def _wait(self, until: Callable[[], bool], timeout_s: float) -> None:
        with self._outbox.changed:
            self._outbox.changed.wait_for(until, timeout_s)

    def _require_open(self) -> None:
        if not self._opened:
            raise SinkUnavailable(f"sink {self._name}: not open")
        self._connection.require_own_name(f"sink {self._name}")

    def _say_availability(self, stream: str, online: bool) -> None:
        if self._config.availability_topic:
            self._notices.put(fill_stream(self._config.availability_topic, stream), _ONLINE if online else _OFFLINE)

    # What follows runs on the thread of the connection.

    def _on_connected(self, client: Client, _session_present: bool) -> None:
        client.drop_out_messages()
        unanswered = list(self._under_way.values())
        self._under_way.clear()
        self._outbox.recall()
        self._notices.recall()
        self._look_for_culprit(unanswered)
        for item in unanswered:
            if not item.key:  # what is true no longer is replaced below
                self._notices.put(item.topic, item.payload)
        self._notices.put(self._config.status_topic, _ONLINE)
        for stream, online in self._streams.items():
            self._say_availability(stream, online)
            self._announce(stream)
        self._leftovers.connected(client, cut=self._connection.cuts > 0)
        if self._discovers:
            client.subscribe(self._birth_topic, qos=1)

    def _look_for_culprit(self, unanswered: list[OutboxRow]) -> None:
        """When one connection after the other is cut, send one by one, and give up what it is always cut for."""
        if not self._connection.cuts or not unanswered:
            return
        first, before = unanswered[0], self._suspect
        same = before is not None and (before.topic, before.number) == (first.topic, first.number)
        self._suspect, self._blamed = first, self._blamed + 1 if same else 1
        self._one_by_one = _TRUSTED_AFTER
        if self._blamed >= _CUTS_OF_ONE:
            self._blamed = 0
            text = f"the connection does not outlive {len(first.payload)} bytes to {first.topic!r}: given up"
            self._say_once(first.topic, text)
            if first.key:
                self._outbox.give_up(first)
            else:
                self._notices.silence(first.topic)

    def _on_message(self, message: MQTTMessage) -> None:
        """Home Assistant was started and wants to know everything again; or a stream is online since an earlier run."""
        self._connection.acknowledge(message)
        if message.topic == self._birth_topic:
            if bytes(message.payload) == _ONLINE:
                for stream in self._streams.names():
                    self._announce(stream)
        elif message.topic != self._config.status_topic:
            self._take_back(self._leftovers.stream_of(message))

    def _take_back(self, stream: str) -> None:
        """Say that a stream is offline, unless we know better."""
        if stream and self._streams.get(stream) is None:
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
            self._notices.put(*discovery(self._manifest, self._config, stream))

    def _on_turn(self, client: Client) -> None:
        self._leftovers.turn(client)
        limits = self._connection.limits
        most = max(1, min(_MOST_UNDER_WAY, limits.receive_maximum, self._outbox.bound // 2))
        if self._broker.protocol != "5":
            most = min(most, _MOST_UNDER_WAY_311)
        if self._one_by_one:
            most = 1
        while len(self._under_way) < most:
            item = self._notices.take() or self._outbox.take()
            if item is None:
                return
            self._publish(client, item)

    def _publish(self, client: Client, item: OutboxRow) -> None:
        limits = self._connection.limits
        label = item.key or self._connection.client_id
        size = len(item.payload) + len(item.topic.encode()) + len(label.encode()) + _PACKET_BYTES
        if size > limits.max_packet_bytes:
            self._say_once("size", f"the broker takes at most {limits.max_packet_bytes} bytes, an output has {size}")
            self._settle(item, refused=True)
            return
        qos = min(self._config.qos if item.key else 1, limits.max_qos)
        retain = limits.retain and (self._config.retain if item.key else True)
        try:
            info = client.publish(item.topic, item.payload, qos, retain, self._properties(item))
        except ValueError as error:
            self._say_once(item.topic, f"topic {item.topic!r} cannot be published to: {error}")
            self._settle(item, refused=True)
            return
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            raise RuntimeError(f"packet identifier {info.mid} is in use")
        self._under_way[info.mid] = item

    def _properties(self, item: OutboxRow) -> Properties | None:
        if self._broker.protocol != "5":
            return None
        if not item.key:
            return signed(self._connection.client_id)
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.PayloadFormatIndicator = 1
        properties.ContentType = "application/json"
        properties.UserProperty = ("id", item.key)
        if self._config.message_expiry_s:
            properties.MessageExpiryInterval = self._config.message_expiry_s
        return properties

    def _on_published(self, mid: int, refusal: str) -> None:
        item = self._under_way.pop(mid, None)
        if item is None:
            return
        if refusal:
            size = len(item.payload)
            self._say_once(item.topic, f"the broker refused an output to {item.topic}: {refusal} ({size} bytes)")
            self._settle(item, refused=True)
            if self._connection.cuts and not item.key:
                self._notices.silence(item.topic)  # it may be what we are cut for
        else:
            self._settle(item)
            self._one_by_one = max(0, self._one_by_one - 1)

    def _settle(self, item: OutboxRow, *, refused: bool = False) -> None:
        if item.key:
            self._outbox.settle(item, refused=refused)
        else:
            self._notices.settle()

    def _say_once(self, key: str, text: str) -> None:
        if key in self._said or len(self._said) >= _MOST_SAID:
            return
        self._said.add(key)
        last = "" if len(self._said) < _MOST_SAID else "; nothing of this kind is said any more"
        log.error("sink %s: %s; said once%s", self._name, text, last)

    def _say_goodbye(self, client: Client) -> None:
        limits = self._connection.limits
        # What could not be confirmed is said once more, so that a broker that is only behind reads it in the end:
        # without acknowledgement, as more may be under way than it allows.
        idle = self.idle
        if self._config.availability_topic and not idle:
            for stream in self._streams.names():
                topic = fill_stream(self._config.availability_topic, stream)
                client.publish(topic, _OFFLINE, 0, limits.retain)
        client.publish(self._config.status_topic, _OFFLINE, min(int(idle), limits.max_qos), limits.retain)
