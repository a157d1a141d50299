"""Topics of an MQTT broker; a message is acknowledged only after its outcome is durable.

Decision: QoS 1 with manual acknowledgements.  Paho acknowledges a message of QoS 2 before the daemon has seen it.

Decision: a commit stores which packets were processed.  A broker sends unacknowledged messages again, and after a kill
nothing else distinguishes a processed message from an unprocessed one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Annotated, Literal

from msgspec import Meta
from msgspec.structs import replace
from paho.mqtt.client import Client, MQTTMessage

from stream_gru.config.connector import SourceContext, SourceTable, TopicUse
from stream_gru.config.problems import Problem
from stream_gru.config.run_schema import BrokerConfig
from stream_gru.config.topic_filters import TopicPattern, pattern_problems, topic_patterns
from stream_gru.connectors.mqtt.ack_tracker import AckTracker
from stream_gru.connectors.mqtt.auth import client_id
from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.connectors.mqtt.paho_client import Handlers, topic_of
from stream_gru.connectors.mqtt.subscriptions import Subscriptions
from stream_gru.connectors.sources.threaded import MessageQueue
from stream_gru.core.commit_records import ProcessedPackets
from stream_gru.core.errors import ConfigError, SourceUnavailable
from stream_gru.core.log_limiter import LogOnce
from stream_gru.core.types import DropReason, Position, RawMessage, SourceHealth

log = logging.getLogger(__name__)

# Messages that brokers send unacknowledged with MQTT 3.1.1, which has no receive maximum.
_MAX_INFLIGHT_311 = 20
_QUIET_S = 60
_SHOWN_BYTES = 4096
_MIN_PACKETS, _PACKETS_PER_INFLIGHT = 4096, 2


class MqttSourceConfig(SourceTable, frozen=True, kw_only=True, tag="mqtt"):
    """Topics of an MQTT broker."""

    topics: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=1024)]],
        Meta(
            description="Topic filters. {stream}, {channel} and other names in braces each stand for one level.",
            examples=[["sensors/{stream}/data"]],
        ),
    ]
    broker: Annotated[str, Meta(description="Name of the [[broker]]; empty: the only one.")] = ""
    stream_id: Annotated[
        str,
        Meta(
            description='Name of a stream, made of names in braces, such as "{site}-{stream}"; empty: all but '
            "{channel}, joined by /."
        ),
    ] = ""
    qos: Annotated[
        Literal[0, 1],
        Meta(description="1: the broker sends what was not processed again after a crash; 0: it does not."),
    ] = 1
    accept_retained: Annotated[
        bool, Meta(description="Whether messages that the broker retained from earlier count as samples.")
    ] = False
    max_payload_bytes: Annotated[
        int, Meta(ge=1, le=268_435_455, description="Larger payloads, in bytes, are dropped.")
    ] = 65_536

    names_streams = True
    reader = "own"

    @property
    def broker_name(self) -> str:
        """The broker of the topics."""
        return self.broker

    @property
    def splits_channels(self) -> bool:
        """Whether a topic names the channel."""
        return any("{channel}" in topic for topic in self.topics)

    def problems(self) -> Iterator[Problem]:
        """Yield topics and names of streams that cannot be used."""
        return pattern_problems(self.topics, self.stream_id)

    def build(self, context: SourceContext) -> MqttSource:
        """Return the source."""
        if context.broker is None:
            raise ConfigError(f"source {context.name}: expected a [[broker]]")
        return MqttSource(self, context.broker, name=context.name, state_dir=context.state_dir, wakeup=context.wakeup)

    def delivery_warnings(self, broker: BrokerConfig | None) -> Iterator[str]:
        """Without QoS 1 and a session the broker keeps nothing while the daemon is not running."""
        if self.qos == 0:
            yield "qos = 0: messages are lost while the daemon or the connection is down (at most once)"
        if broker is not None and broker.session_expiry_s == 0:
            yield "session_expiry_s = 0: the broker keeps nothing while the connection is down"

    def subscriptions(self) -> Iterator[TopicUse]:
        """Yield the filters of valid topics."""
        for index, topic in enumerate(self.topics):
            if not list(pattern_problems([topic], "")):
                yield TopicUse(("topics", index), TopicPattern(topic).filter)

    def continues(self, before: SourceTable) -> bool:
        """Messages are numbered, whatever they are."""
        return True


class MqttSource:
    """Messages of the matching topics, each with the stream and the channel that its topic names.

    A message of an unknown topic, a retained or a too large one is passed on as a fault, so that it is counted and
    acknowledged like all others.  While the queue is full nothing is read, and the broker has to wait.  ``wakeup`` is
    called after each message, on another thread.  Raises ConfigError for topics that cannot be used.
    """

    def __init__(
        self,
        config: MqttSourceConfig,
        broker: BrokerConfig,
        *,
        name: str,
        state_dir: str = "",
        wakeup: Callable[[], None] | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._broker, self._name, self._wall_ns, self._clock = config, broker, name, wall_ns, clock
        self._patterns = topic_patterns(config.topics, config.stream_id)
        self._queue = MessageQueue(config.queue_size, config.queue_bytes, wakeup)
        self._acks = AckTracker()
        self._packets: Mapping[int, bytes] = {}
        self._opened = self._closing = False
        self._paused = False
        self._sessions_lost = self._qos0_messages = 0
        self._complain = LogOnce(log, f"source {name}")
        self._received = False
        self._granted_s = 0.0
        own_id = client_id(broker, "source", name)
        self._subscriptions = Subscriptions(name, own_id, _filters(self._patterns), config.qos, state_dir)
        self._connection = Connection(
            broker,
            own_id,
            Handlers(
                connected=self._on_connected,
                message=self._on_message,
                subscribed=self._subscriptions.subscribed,
                unsubscribed=self._subscriptions.unsubscribed,
                on_idle=self._on_idle,
                wants_input=self._wants_input,
            ),
            payload_bytes=config.max_payload_bytes,
        )

    @property
    def connection(self) -> Connection:
        """The connection, with the limits of the broker."""
        return self._connection

    @property
    def max_inflight(self) -> int:
        """Messages that the broker sends before one of them has to be acknowledged."""
        return self._broker.receive_maximum if self._broker.protocol == "5" else _MAX_INFLIGHT_311

    @property
    def max_packets(self) -> int:
        """Processed packets to remember."""
        return max(_MIN_PACKETS, _PACKETS_PER_INFLIGHT * self.max_inflight)

    def resume(self, packets: Mapping[int, bytes]) -> None:
        """Before `open`: packets that earlier processes have processed, oldest first."""
        self._packets = packets

    def open(self, position: Position | None) -> None:
        """Start to connect, and wait for a missing broker.  Messages are numbered from ``position`` on.

        Raises ConfigError when user, password or certificates cannot be read.
        """
        if not self._opened:
            last = 0 if position is None else position.offset
            self._acks = AckTracker(last, self._packets, max_done=self.max_packets)
            self._connection.open()
            self._opened = True

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return the messages that have come."""
        if not self._opened or self._closing:
            raise SourceUnavailable(f"source {self._name}: not open")
        messages = self._queue.get(limit, timeout_s)
        if self._paused:
            self._connection.wake()
        return messages

    def processed_packets(self, position: Position) -> ProcessedPackets:
        """The packets up to ``position`` that are not stored yet."""
        return self._acks.processed_packets(position.offset) if position.name == self._name else ProcessedPackets()

    def commit(self, position: Position) -> None:
        """Acknowledge all messages up to ``position``, in their order."""
        if position.name == self._name:
            self._acks.processed(position.offset)
            self._connection.wake()

    def close(self) -> None:
        """Acknowledge what was committed and disconnect; the broker keeps the session and queues messages."""
        self._close(end_session=False)

    def forget(self) -> None:
        """Close and end the session: the broker keeps no messages for a source that was removed."""
        self._close(end_session=True)

    def _close(self, *, end_session: bool) -> None:
        self._closing = True
        self._queue.close()
        self._connection.close(before_disconnect=self._on_idle, end_session=end_session)

    def health(self) -> SourceHealth:
        """Whether the broker is connected and has granted all topics, and what is queued."""
        return SourceHealth(
            connected=self._connection.connected and self._connection.alive and self._subscriptions.complete,
            queued=len(self._queue),
            queued_bytes=self._queue.nbytes,
            reconnects=self._connection.reconnects,
            sessions_lost=self._sessions_lost,
            qos0_messages=self._qos0_messages,
            redelivered=self._acks.redelivered,
        )

    def update(self, config: object) -> bool:
        """Change the topics on the same connection; return False when other keys differ, too.

        Raises ConfigError for topics that cannot be used.
        """
        if not isinstance(config, MqttSourceConfig):
            return False
        if replace(config, topics=self._config.topics, stream_id=self._config.stream_id) != self._config:
            return False
        self._patterns = topic_patterns(config.topics, config.stream_id)
        self._config = config
        self._subscriptions.want(_filters(self._patterns))
        self._connection.call_soon(self._subscriptions.agree)
        return True

    def _wants_input(self) -> bool:
        # Set before the check, so that `poll` wakes the connection if it frees space in between.
        self._paused = True
        self._paused = not self._queue.has_room(self._config.max_payload_bytes)
        return not self._paused

    def _on_connected(self, client: Client, session_present: bool) -> None:
        self._acks.connected(session_present)
        if self._subscriptions.connected(client, session_present):
            self._sessions_lost += 1
            log.warning("source %s: the broker lost the session: messages may be missing", self._name)
        granted_s = self._connection.limits.session_expiry_s
        asked_s = self._connection.session_expiry_s
        if granted_s is not None and granted_s < asked_s and self._connection.epoch == 1:
            log.warning(
                "source %s: the broker keeps messages for %d s only, not for session_expiry_s = %d",
                self._name, granted_s, asked_s,
            )  # fmt: skip

    def _on_idle(self, client: Client) -> None:
        for mid in self._acks.pending_acks():
            client.ack(mid, 1)
        if not self._received and self._subscriptions.complete:
            self._warn_if_quiet()

    def _warn_if_quiet(self) -> None:
        """Log once that nothing came although all was granted: a broker may grant topics that it does not deliver."""
        self._granted_s = self._granted_s or self._clock()
        if self._clock() - self._granted_s >= _QUIET_S:
            self._received = True
            log.warning(
                "source %s: no message within %d s after subscribing: check topics and permissions",
                self._name, _QUIET_S,
            )  # fmt: skip

    def _on_message(self, message: MQTTMessage) -> None:
        arrival_ns = self._wall_ns()
        self._received = True
        topic, valid = topic_of(message)
        number: int | None
        if message.qos:
            number = self._acks.on_message(message.mid, _digest(topic, message.payload), message.dup)
        else:
            number = self._acks.on_qos0_message()
            self._count_qos0(topic)
        if number is not None:
            raw = self._raw(topic, message, number, arrival_ns, valid=valid)
            self._queue.put(raw, lambda: self._closing)

    def _raw(self, topic: str, message: MQTTMessage, number: int, arrival_ns: int, *, valid: bool) -> RawMessage:
        """The message for the daemon, with a fault where it cannot be used; of a too large one the beginning."""
        position = Position(self._name, number)
        payload = bytes(message.payload)

        def refused(fault: DropReason, why: str) -> RawMessage:
            self._complain(fault, f"topic {topic!r:.200}: {why}")
            return RawMessage(
                payload if len(payload) <= self._config.max_payload_bytes else payload[:_SHOWN_BYTES],
                arrival_ns=arrival_ns,
                position=position,
                fault=fault,
                source=self._name,
                topic=topic,
            )

        if not valid:
            return refused(DropReason.ENCODING, "expected UTF-8, got other bytes")
        if message.retain and not self._config.accept_retained:
            return refused(DropReason.RETAINED, "expected a new message, got a retained one")
        if len(payload) > self._config.max_payload_bytes:
            most = self._config.max_payload_bytes
            return refused(DropReason.TOO_LARGE, f"expected at most {most} bytes, got {len(payload)}")
        for pattern in self._patterns:
            found = pattern.match(topic)
            if found is not None:
                return RawMessage(
                    payload,
                    pattern.stream_of(topic, found, self._config.stream_id),
                    arrival_ns=arrival_ns,
                    position=position,
                    channel=found.get("channel", ""),
                    source=self._name,
                    topic=topic,
                )
        return refused(DropReason.UNKNOWN_STREAM, "expected one of the source's topics")

    def _count_qos0(self, topic: str) -> None:
        self._qos0_messages += 1
        text = f"topic {topic!r:.200}: messages come with QoS 0: a crash or a lost connection loses them"
        self._complain("qos", text)


def _digest(topic: str, payload: bytes | bytearray) -> bytes:
    """A digest of a message, by which a repetition is known."""
    return blake2b(topic.encode() + b"\0" + payload, digest_size=8).digest()


def _filters(patterns: Sequence[TopicPattern]) -> list[str]:
    return [pattern.filter for pattern in patterns]
