"""Topics of an MQTT broker; a message is acknowledged only when what became of it is durable.

Decision: QoS 1 with acknowledgements of our own.  Paho answers a message of QoS 2 before anybody has seen it.

Decision: which packets were processed is written down with what became of them.  A broker sends again what it has no
acknowledgement of, and after a kill nothing else tells a message that was processed from one that was not.
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
from stream_gru.connectors.mqtt.ack_tracker import Ledger
from stream_gru.connectors.mqtt.auth import client_id
from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.connectors.mqtt.paho_client import Handlers
from stream_gru.connectors.mqtt.subscriptions import Subscriptions
from stream_gru.connectors.sources.threaded import MessageQueue
from stream_gru.core.commit_records import ProcessedPackets
from stream_gru.core.errors import ConfigError, SourceUnavailable
from stream_gru.core.log_limiter import LogOnce
from stream_gru.core.types import DropReason, Position, RawMessage, SourceHealth

log = logging.getLogger(__name__)

# What brokers let through unacknowledged where the protocol has no word for it.
_WINDOW_OF_311 = 20
_UNHEARD_S = 60
_PACKETS_KEPT, _WINDOWS_KEPT = 4096, 4


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
        return MqttSource(self, context.broker, name=context.name, state_dir=context.state_dir, bell=context.wakeup)

    def delivery_warnings(self, broker: BrokerConfig | None) -> Iterator[str]:
        """Without QoS 1 and a session the broker keeps nothing for a daemon that is away."""
        if self.qos == 0:
            yield "qos = 0: messages are lost while the daemon or the connection is away (at most once)"
        if broker is not None and broker.session_expiry_s == 0:
            yield "session_expiry_s = 0: the broker keeps nothing while the connection is away"

    def subscriptions(self) -> Iterator[TopicUse]:
        """Yield the filters of valid topics."""
        for index, topic in enumerate(self.topics):
            if not list(pattern_problems([topic], "")):
                yield TopicUse(("topics", index), TopicPattern(topic).filter)

    def continues(self, before: SourceTable) -> bool:
        """Messages are numbered, whatever they are."""
        return True


class MqttSource:
    """Messages of the topics that match, each with the stream and the channel that its topic tells.

    What comes on no known topic, is retained or too long is handed on as a fault, so that it is counted and
    acknowledged like everything else.  While the queue is full nothing is read, and the broker has to wait.
    ``bell`` is rung after each message, on another thread.  Raises ConfigError for topics that cannot be used.
    """

    def __init__(
        self,
        config: MqttSourceConfig,
        broker: BrokerConfig,
        *,
        name: str,
        state_dir: str = "",
        bell: Callable[[], None] | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._broker, self._name, self._wall_ns, self._clock = config, broker, name, wall_ns, clock
        self._patterns = topic_patterns(config.topics, config.stream_id)
        self._queue = MessageQueue(config.queue_size, config.queue_bytes, bell)
        self._ledger = Ledger()
        self._packets: Mapping[int, bytes] = {}
        self._opened = self._closing = False
        self._holding = False
        self._sessions_lost = self._unprotected = 0
        self._complain = LogOnce(log, f"source {name}")
        self._heard = False
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
                turn=self._on_turn,
                wants_input=self._wants_input,
            ),
            payload_bytes=config.max_payload_bytes,
        )

    @property
    def connection(self) -> Connection:
        """The connection, for those who want to know what the broker lets through."""
        return self._connection

    @property
    def max_inflight(self) -> int:
        """How many messages the broker sends before one of them has to be acknowledged."""
        return self._broker.receive_maximum if self._broker.protocol == "5" else _WINDOW_OF_311

    @property
    def packets_kept(self) -> int:
        """How many packets that were processed have to be remembered."""
        return max(_PACKETS_KEPT, _WINDOWS_KEPT * self.max_inflight)

    def resume(self, packets: Mapping[int, bytes]) -> None:
        """Before `open`: packets that were processed by earlier processes, oldest first."""
        self._packets = packets

    def open(self, position: Position | None) -> None:
        """Begin to connect; a broker that is not there is waited for.  Messages are numbered after ``position``.

        Raises ConfigError when user, password or certificates cannot be read.
        """
        if not self._opened:
            last = 0 if position is None else position.offset
            self._ledger = Ledger(last, self._packets, done_kept=self.packets_kept)
            self._connection.open()
            self._opened = True

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return what has come.  Raises TakenOver when another client has our name."""
        if not self._opened or self._closing:
            raise SourceUnavailable(f"source {self._name}: not open")
        messages = self._queue.get(limit, timeout_s)
        if not messages:
            self._connection.require_own_name(f"source {self._name}")
        if self._holding:
            self._connection.wake()
        return messages

    def processed_packets(self, position: Position) -> ProcessedPackets:
        """The packets up to ``position`` that were not written down yet."""
        return self._ledger.processed_packets(position.offset) if position.name == self._name else ProcessedPackets()

    def commit(self, position: Position) -> None:
        """Acknowledge all messages up to ``position``, in the order in which they came."""
        if position.name == self._name:
            self._ledger.processed(position.offset)
            self._connection.wake()

    def close(self) -> None:
        """Acknowledge what was committed and disconnect; the session stays and goes on collecting."""
        self._leave(forget=False)

    def forget(self) -> None:
        """Close for good: the broker shall keep nothing for a source that does not come back."""
        self._leave(forget=True)

    def _leave(self, *, forget: bool) -> None:
        self._closing = True
        self._queue.close()
        self._connection.close(farewell=self._on_turn, forget=forget)

    def health(self) -> SourceHealth:
        """Whether the broker is there and has granted all topics on this connection, and what waits."""
        return SourceHealth(
            connected=self._connection.connected and self._connection.alive and self._subscriptions.complete,
            queued=len(self._queue),
            queued_bytes=self._queue.nbytes,
            reconnects=self._connection.reconnects,
            sessions_lost=self._sessions_lost,
            qos0_messages=self._unprotected,
            redelivered=self._ledger.redelivered,
        )

    def update(self, config: object) -> bool:
        """Take over other topics on the same connection; return False when more than that is different.

        Raises ConfigError for topics that cannot be used.
        """
        if not isinstance(config, MqttSourceConfig):
            return False
        if replace(config, topics=self._config.topics, stream_id=self._config.stream_id) != self._config:
            return False
        self._patterns = topic_patterns(config.topics, config.stream_id)
        self._config = config
        self._subscriptions.want(_filters(self._patterns))
        self._connection.later(self._subscriptions.agree)
        return True

    def _wants_input(self) -> bool:
        # Said before looking, so that whoever makes room in between knows that somebody waits.
        self._holding = True
        self._holding = not self._queue.has_room(self._config.max_payload_bytes)
        return not self._holding

    def _on_connected(self, client: Client, session_present: bool) -> None:
        self._ledger.connected(session_present)
        if self._subscriptions.connected(client, session_present):
            self._sessions_lost += 1
            log.warning("source %s: the broker has lost the session: messages may be missing", self._name)
        granted_s = self._connection.limits.session_expiry_s
        if granted_s is not None and granted_s < self._broker.session_expiry_s and self._connection.epoch == 1:
            log.warning(
                "source %s: the broker keeps messages for us for %d s only, not for session_expiry_s = %d",
                self._name, granted_s, self._broker.session_expiry_s,
            )  # fmt: skip

    def _on_turn(self, client: Client) -> None:
        for mid in self._ledger.take_acks():
            client.ack(mid, 1)
        if not self._heard and self._subscriptions.complete:
            self._wonder()

    def _wonder(self) -> None:
        """Say once that nothing has come though all was granted: a broker may grant what it then holds back."""
        self._granted_s = self._granted_s or self._clock()
        if self._clock() - self._granted_s >= _UNHEARD_S:
            self._heard = True
            log.warning(
                "source %s: subscribed for %d s and nothing has come: look at the topics, and at who may read them",
                self._name, _UNHEARD_S,
            )  # fmt: skip

    def _on_message(self, message: MQTTMessage) -> None:
        arrival_ns = self._wall_ns()
        self._heard = True
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = None
        number: int | None
        if message.qos:
            number = self._ledger.arrived(message.mid, _digest(topic, message.payload), message.dup)
        else:
            number = self._ledger.unprotected()
            self._count_unprotected(topic)
        if number is not None:
            self._queue.put(self._raw(topic, message, number, arrival_ns), lambda: self._closing)

    def _raw(self, topic: str | None, message: MQTTMessage, number: int, arrival_ns: int) -> RawMessage:
        """The message as the daemon takes it, perhaps with a fault in place of a payload."""
        position = Position(self._name, number)

        def refused(fault: DropReason, why: str) -> RawMessage:
            self._complain(fault, f"topic {topic!r:.200}: {why}")
            return RawMessage(b"", arrival_ns=arrival_ns, position=position, fault=fault, source=self._name)

        if topic is None:
            return refused(DropReason.ENCODING, "expected UTF-8, got other bytes")
        if message.retain and not self._config.accept_retained:
            return refused(DropReason.RETAINED, "left out an old, retained message")
        payload = bytes(message.payload)
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
                )
        return refused(DropReason.UNKNOWN_STREAM, "matches no topic of this source")

    def _count_unprotected(self, topic: str | None) -> None:
        self._unprotected += 1
        text = f"topic {topic!r:.200}: messages come with QoS 0: a crash or a lost connection loses them"
        self._complain("qos", text)


def _digest(topic: str | None, payload: bytes | bytearray) -> bytes:
    """What tells one message from another; one whose topic is not text has none."""
    return blake2b((topic or "").encode() + b"\0" + payload, digest_size=16).digest()


def _filters(patterns: Sequence[TopicPattern]) -> list[str]:
    return [pattern.filter for pattern in patterns]
