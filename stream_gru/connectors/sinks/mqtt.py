"""Publishes each output as JSON to a topic of its stream, and the availability of the daemon and of each stream.

A row is kept until the broker has acknowledged it, also in the store where there is one, and is sent again on the next
connection or after the next start until then: at least once on the wire, and the ``id`` identifies a repeated row.

Decision: the loop never waits for the broker.  With ``drop_oldest`` what overflows is counted as dropped; with
``block`` a full queue is not `ready`, and no source is read until it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from msgspec import Meta
from paho.mqtt.client import Client, MQTTMessage

from stream_gru.config.connector import SinkContext, SinkTable, TopicUse
from stream_gru.config.field_types import NonNegativeInt, PositiveInt, Topic
from stream_gru.config.problems import Problem, shown
from stream_gru.config.run_schema import BrokerConfig
from stream_gru.config.topic_filters import fill_stream
from stream_gru.connectors.mqtt.auth import client_id, sender_label
from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.connectors.mqtt.paho_client import Handlers, Will, topic_of
from stream_gru.connectors.mqtt.publisher import Publisher, RetainedOutbox
from stream_gru.connectors.sinks.availability import StaleAvailability, StreamAvailability
from stream_gru.connectors.sinks.encoders import JsonEncoder, encode_once
from stream_gru.connectors.sinks.home_assistant import DEFAULT_TOPIC, Discovery, discovery_topic
from stream_gru.connectors.sinks.outbox import Outbox
from stream_gru.core.commit_records import FlushResult, OutboxRow, OutboxState, SinkCheckpoint
from stream_gru.core.errors import ConfigError, SinkUnavailable, StateError
from stream_gru.core.log_limiter import LogOnce
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import PredictionBatch, SinkHealth

log = logging.getLogger(__name__)

_ONLINE, _OFFLINE = b"online", b"offline"
# `close` takes at most this long: first for the rows, then for the availability of streams.
_CLOSE_S = 1.0
_CLOSE_ROWS_S, _CLOSE_RETAINED_S = 0.5, 0.25


class MqttSinkConfig(SinkTable, frozen=True, kw_only=True, tag="mqtt"):
    """An MQTT broker: each output as JSON, and the availability of the daemon and of each stream."""

    broker: Annotated[str, Meta(description="Name of the [[broker]]; empty: the only one.")] = ""
    topic: Annotated[Topic, Meta(description="Topic of each output; {stream} stands for the stream's name.")] = (
        DEFAULT_TOPIC
    )
    status_topic: Annotated[
        Topic, Meta(description='Topic of the daemon\'s availability, "online" or "offline", retained.')
    ] = "stream_gru/status"
    availability_topic: Annotated[
        str,
        Meta(
            max_length=1024,
            description="Topic of a stream's availability, with {stream}; a stream is offline while it is idle and "
            "after the end. Empty: none.",
        ),
    ] = "stream_gru/{stream}/availability"
    qos: Annotated[
        Literal[0, 1], Meta(description="1: outputs are sent until the broker acknowledges them; 0: once.")
    ] = 1
    retain: Annotated[bool, Meta(description="Whether the broker retains the last output of each topic.")] = False
    message_expiry_s: Annotated[
        NonNegativeInt, Meta(description="Seconds after which the broker drops an undelivered output; 0: never.")
    ] = 0
    queue_size: Annotated[PositiveInt, Meta(description="Unacknowledged outputs at most.")] = 10_000
    queue_bytes: Annotated[PositiveInt, Meta(description="The same limit in bytes.")] = 16_777_216
    when_full: Annotated[
        Literal["block", "drop_oldest"],
        Meta(description='When the queue is full: "block" lets the inputs wait; "drop_oldest" drops outputs, counted.'),
    ] = "block"
    home_assistant: Annotated[
        bool, Meta(description="Whether Home Assistant discovers devices and sensors by itself.")
    ] = False
    discovery_prefix: Annotated[Topic, Meta(description="Topic under which Home Assistant looks for them.")] = (
        "homeassistant"
    )

    @property
    def broker_name(self) -> str:
        """The broker to publish to."""
        return self.broker

    def problems(self) -> Iterator[Problem]:
        """Topics have a form that a broker takes, and {stream} where it belongs."""
        for key, topic in self._topics():
            rest = topic.replace("{stream}", "")
            if set("{}") & set(rest) and key != "discovery_prefix":
                yield Problem((key,), "no braces but {stream}", shown(topic))
            if set("+#\0") & set(rest):
                yield Problem((key,), "a topic without + and #", shown(topic))
            if topic.startswith("$"):
                yield Problem((key,), "a topic that does not begin with $: those are the broker's own", shown(topic))
        if self.home_assistant and "{stream}" not in self.topic:
            expected = "a topic with {stream}: Home Assistant reads each device from its own topic"
            yield Problem(("topic",), expected, shown(self.topic))
        if "{stream}" in self.status_topic:
            yield Problem(("status_topic",), "no {stream}, as it is about the daemon", shown(self.status_topic))
        if self.availability_topic and "{stream}" not in self.availability_topic:
            yield Problem(("availability_topic",), 'a topic with {stream} in it, or ""', shown(self.availability_topic))

    def build(self, context: SinkContext) -> MqttSink:
        """Return the sink."""
        if context.broker is None:
            raise ConfigError(f"sink {context.name}: expected a [[broker]]")
        return MqttSink(self, context.broker, name=context.name, immediate=context.immediate)

    def delivery_warnings(self) -> Iterator[str]:
        """A queue that drops, and QoS 0, lose outputs."""
        if self.when_full == "drop_oldest":
            yield 'when_full = "drop_oldest": outputs are lost while the broker is down for long'
        if self.qos == 0:
            yield "qos = 0: outputs in flight are lost with a connection"

    def publications(self) -> Iterator[TopicUse]:
        """Yield all topics; those of Home Assistant hold the id of a device, which differs from sink to sink."""
        for key, topic in self._topics():
            yield TopicUse((key,), topic, exclusive=key != "discovery_prefix")

    def excludes(self, old: SinkTable) -> bool:
        """A client id has one connection."""
        return isinstance(old, MqttSinkConfig)

    def _topics(self) -> Iterator[tuple[str, str]]:
        yield "topic", self.topic
        yield "status_topic", self.status_topic
        if self.availability_topic:
            yield "availability_topic", self.availability_topic
        if self.home_assistant:
            yield "discovery_prefix", discovery_topic(self, "{stream}")


class MqttSink:
    """Publishes rows to ``topic``, and the availability of the daemon and of each stream, retained, to two others.

    ``immediate``: a row may be published before it is stored.
    """

    def __init__(
        self,
        config: MqttSinkConfig,
        broker: BrokerConfig,
        *,
        name: str,
        immediate: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._broker, self._name = config, broker, name
        self._clock = clock
        self._encoder = JsonEncoder()
        self._discovery = Discovery(config)
        self._outbox = Outbox(
            config.queue_size,
            max_bytes=config.queue_bytes,
            drop_oldest=config.when_full == "drop_oldest",
            immediate=immediate,
        )
        self._retained = RetainedOutbox(self._outbox.changed)
        self._streams = StreamAvailability()
        self._opened = False
        own_id = client_id(broker, "sink", name)
        sender = sender_label(own_id)
        self._stale = StaleAvailability(config.availability_topic, sender, clock)
        self._publisher = Publisher(
            self._outbox,
            self._retained,
            LogOnce(log, f"sink {name}", level=logging.ERROR),
            sender=sender,
            newest=broker.protocol == "5",
            qos=config.qos,
            retain=config.retain,
            expiry_s=config.message_expiry_s,
        )
        self._connection = Connection(
            broker,
            own_id,
            Handlers(
                connected=self._on_connected,
                message=self._on_message,
                published=self._publisher.published,
                subscribed=self._stale.subscribed,
                unsubscribed=self._stale.unsubscribed,
                on_idle=self._on_idle,
            ),
            will=Will(config.status_topic, _OFFLINE),
            clock=clock,
        )

    @property
    def connection(self) -> Connection:
        """The connection, with the limits of the broker."""
        return self._connection

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Start to connect, and wait for a missing broker.  Rows of ``checkpoint`` are sent first.

        Raises ConfigError when user, password or certificates cannot be read, StateError for outputs of another kind.
        """
        if self._opened:
            return
        if checkpoint is not None and not all(row.topic for row in checkpoint.unacked):
            raise StateError(
                f"sink {self._name}: expected stored outputs for a broker, got some of another kind of sink; "
                f"give the sink a new name"
            )
        self._outbox.resume(checkpoint)
        self._connection.open()
        self._opened = True

    def ready(self) -> bool:
        """Whether the queue has room."""
        return self._outbox.ready

    def write(self, batch: PredictionBatch) -> None:
        """Queue all rows, in order.  Raises SinkUnavailable when it is not open."""
        self._require_open()
        if not len(batch):
            return
        if self._discovery.use(batch.spec):
            for stream in self._streams.names():
                self._announce(stream)
        topics = [fill_stream(self._config.topic, stream) for stream in batch.stream_names]
        lines = encode_once(self._encoder, batch).splitlines()
        columns = zip(batch.stream_index.tolist(), format_iso(batch.time_ns), lines, strict=True)
        rows = [OutboxRow(topics[index], line, f"{batch.stream_names[index]}/{when}") for index, when, line in columns]
        for index in dict.fromkeys(batch.stream_index.tolist()):
            if not self._streams.get(batch.stream_names[index]):
                self.stream_status(batch.stream_names[index], True)
        self._outbox.put(rows)
        self._connection.wake()

    def flush(self) -> FlushResult:
        """Return the rows to store until the broker acknowledges them."""
        return self._outbox.flush()

    def committed(self) -> None:
        """Publish the rows of the last `flush`."""
        self._outbox.committed()
        self._connection.wake()

    def stream_status(self, stream: str, online: bool) -> None:
        """Publish that a stream is online or offline; an output sets it online again.

        A stream without outputs is never announced as offline.
        """
        new = self._streams.get(stream) is None
        if new and not online:
            return
        displaced = self._streams.put(stream, online)
        self._publish_availability(stream, online)
        if displaced:
            self._publish_availability(displaced, False)
        if new:
            self._announce(stream)
        self._connection.wake()

    def close(self) -> None:
        """Wait briefly for acknowledgements, publish ``offline`` for all streams and the daemon, and disconnect.

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
            self._wait(lambda: self.idle, _CLOSE_RETAINED_S)
        if len(self._outbox):
            then = "; the store keeps them" if self._outbox.durable else ""
            log.warning("sink %s: %d outputs were not acknowledged%s", self._name, len(self._outbox), then)
        self._opened = False
        self._connection.close(self._publish_offline, max(0.0, end - self._clock()))

    def handoff(self) -> OutboxState:
        """After `close`: unfinished rows, for the sink that takes the place of this one."""
        return self._outbox.handoff()

    def adopt(self, state: OutboxState) -> None:
        """Before the first `write`: publish these rows first, on their own topics."""
        self._outbox.adopt(state)

    def health(self) -> SinkHealth:
        """Whether the broker is connected, and how many rows are queued."""
        return SinkHealth(
            connected=self._connection.connected and self._connection.alive,
            queued=len(self._outbox),
            failed=self._outbox.failed,
            dropped=self._outbox.dropped,
            reconnects=self._connection.reconnects,
        )

    @property
    def idle(self) -> bool:
        """Whether everything was sent and acknowledged."""
        return self._outbox.quiet and self._retained.idle

    def _wait(self, until: Callable[[], bool], timeout_s: float) -> None:
        with self._outbox.changed:
            self._outbox.changed.wait_for(until, timeout_s)

    def _require_open(self) -> None:
        if not self._opened:
            raise SinkUnavailable(f"sink {self._name}: not open")

    def _publish_availability(self, stream: str, online: bool) -> None:
        if self._config.availability_topic:
            self._retained.put(fill_stream(self._config.availability_topic, stream), _ONLINE if online else _OFFLINE)

    # ---- on the thread of the connection ----------------------------------------------------------------------------

    def _on_connected(self, client: Client, _session_present: bool) -> None:
        self._publisher.connected(client, self._connection.limits, self._connection.short_connections)
        self._retained.put(self._config.status_topic, _ONLINE)
        for stream, online in self._streams.items():
            self._publish_availability(stream, online)
            self._announce(stream)
        self._stale.connected(client, cut=self._connection.short_connections > 0)
        if self._discovery.enabled:
            client.subscribe(self._discovery.birth_topic, qos=1)

    def _on_message(self, message: MQTTMessage) -> None:
        """Home Assistant has started, or a stream is retained as online since an earlier run."""
        self._connection.acknowledge(message)
        topic, valid = topic_of(message)
        if topic == self._discovery.birth_topic:
            if bytes(message.payload) == _ONLINE:
                for stream in self._streams.names():
                    self._announce(stream)
        elif valid and topic != self._config.status_topic:
            self._set_stale_offline(self._stale.stream_of(message))

    def _set_stale_offline(self, stream: str) -> None:
        """Publish that a stream is offline, unless it has had an output."""
        if stream and self._streams.get(stream) is None:
            self._publish_availability(stream, False)
            online = self._streams.get(stream)
            if online is not None:  # its first output came meanwhile
                self._publish_availability(stream, online)

    def _announce(self, stream: str) -> None:
        announcement = self._discovery.announcement(stream)
        if announcement is not None:
            self._retained.put(*announcement)

    def _on_idle(self, client: Client) -> None:
        self._stale.on_idle(client)
        self._publisher.send(client)

    def _publish_offline(self, client: Client) -> None:
        limits = self._connection.limits
        # Repeated without acknowledgement, in case that the broker is only slow: more may be in flight than it allows.
        idle = self.idle
        if self._config.availability_topic and not idle:
            for stream in self._streams.names():
                topic = fill_stream(self._config.availability_topic, stream)
                client.publish(topic, _OFFLINE, 0, limits.retain)
        client.publish(self._config.status_topic, _OFFLINE, min(int(idle), limits.max_qos), limits.retain)
