"""Commands over MQTT: a connection of its own that subscribes to one topic and answers each request.

A request is ``{"action": "reset", "stream": "pump-7"}`` or ``{"action": "pause", "all": true}``.  The result goes to
the response topic of the request, with its correlation data, else to ``<topic>/response``: ``{"ok": true, "text":
"...", "streams": 1}``.  The broker decides who may send commands: its access list names the writers of the topic.

Decision: a retained command is rejected, else a stored "reset" would be executed at each new connection.  Commands sent
while the daemon is offline are rejected too: the sender got no result and may have sent another command since.  So the
session ends with the connection.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from stream_gru.config.run_schema import BrokerConfig, ControlConfig
from stream_gru.connectors.mqtt.auth import client_id
from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.connectors.mqtt.paho_client import Handlers
from stream_gru.runtime.control.commands import (
    MAX_COMMAND_BYTES,
    UNKNOWN,
    Action,
    Command,
    CommandResult,
    Commands,
    RejectedCommands,
    parse_command,
)

log = logging.getLogger(__name__)

_QOS = 1
_NO_RETAINED = 2  # retain handling of MQTT 5: send no retained messages
_MAX_UNACKED = 256
# Longer requests get an error as a result; the broker drops those longer than this.
_MAX_PACKET_BYTES = 2 * MAX_COMMAND_BYTES


@dataclass(frozen=True, slots=True)
class _ReturnAddress:
    """Where a result goes."""

    topic: str
    correlation: bytes | None = None


class ControlMqtt:
    """Puts requests from the configured topic into ``commands`` and publishes the results.  No request raises.

    ``rejected`` is called for each request that does not reach ``commands``, as in `RejectedCommands`, on the thread of
    the connection.
    """

    def __init__(
        self,
        config: ControlConfig,
        broker: BrokerConfig,
        commands: Commands,
        rejected: Callable[[str, str], None] = lambda action, reason: None,
    ) -> None:
        self._topic, self._commands = config.topic, commands
        self._rejected = RejectedCommands("MQTT", rejected)
        self._mqtt5 = broker.protocol == "5"
        self._unacked: set[int] = set()
        self._connection = Connection(
            replace(broker, session_expiry_s=0),
            client_id(broker, "control"),
            Handlers(
                connected=self._on_connected,
                message=self._on_message,
                published=self._on_published,
                subscribed=self._on_subscribed,
            ),
            payload_bytes=_MAX_PACKET_BYTES,
        )
        self._client: Client | None = None
        self._subscribed = False

    @property
    def connected(self) -> bool:
        """Whether commands can be received: connected and subscribed."""
        return self._connection.connected and self._subscribed

    def open(self) -> None:
        """Start to connect and return.  Raises ConfigError when credentials or certificates cannot be read."""
        self._connection.open()

    def close(self) -> None:
        """Disconnect; may be called twice."""
        self._connection.close()

    def _on_connected(self, client: Client, _: bool) -> None:
        self._client, self._subscribed = client, False
        if self._mqtt5:
            client.subscribe(self._topic, options=SubscribeOptions(qos=_QOS, retainHandling=_NO_RETAINED))
        else:
            client.subscribe(self._topic, _QOS)

    def _on_subscribed(self, _: int, errors: Sequence[str]) -> None:
        for error in filter(None, errors):
            log.error("commands: the broker rejected the subscription to %s: %s", self._topic, error)
        self._subscribed = not any(errors)

    def _on_published(self, mid: int, error: str) -> None:
        self._unacked.discard(mid)
        if error:
            log.warning("commands: the broker rejected a result: %s", error)

    def _on_message(self, message: MQTTMessage) -> None:
        """Acknowledge a request and queue its command; called on the thread of the connection."""
        if self._client is not None and message.qos:
            self._client.ack(message.mid, message.qos)
        if message.retain:
            reason = f"{self._topic} has a retained message, which is not executed; delete it"
            self._rejected.report(_action_in(message.payload), reason)
            return
        address = self._address_of(message)
        try:
            action, stream = parse_command(_read(message.payload))
        except ValueError as error:
            self._reject(address, _action_in(message.payload), str(error))
            return
        if not self._commands.put(Command(action, stream, lambda result: self._respond(address, result))):
            self._reject(address, action, "too many commands are waiting")

    def _reject(self, address: _ReturnAddress, action: str, reason: str) -> None:
        self._rejected.report(str(action), reason)
        self._respond(address, CommandResult(False, reason))

    def _address_of(self, message: MQTTMessage) -> _ReturnAddress:
        """Return the response topic of a request, unless it is the command topic, a $ topic or a filter."""
        properties: Any = message.properties
        topic = getattr(properties, "ResponseTopic", "")
        if not topic or topic == self._topic or topic.startswith("$") or any(letter in topic for letter in "+#\0"):
            topic = f"{self._topic}/response"
        return _ReturnAddress(topic, getattr(properties, "CorrelationData", None))

    def _respond(self, address: _ReturnAddress, result: CommandResult) -> None:
        """Publish a result; called from any thread."""
        payload = json.dumps(result.as_dict()).encode()

        def publish(client: Client) -> None:
            if len(self._unacked) >= _MAX_UNACKED:
                log.warning("commands: a result is dropped: the broker does not acknowledge earlier ones")
                return
            self._unacked.add(client.publish(address.topic, payload, _QOS, properties=self._properties(address)).mid)

        self._connection.call_soon(publish)

    def _properties(self, address: _ReturnAddress) -> Properties | None:
        if not self._mqtt5:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = "application/json"
        properties.PayloadFormatIndicator = 1
        if address.correlation is not None:
            properties.CorrelationData = address.correlation
        return properties


def _read(payload: bytes | bytearray) -> object:
    """Parse the JSON of a request.  Raises ValueError."""
    if len(payload) > MAX_COMMAND_BYTES:
        raise ValueError(f"expected at most {MAX_COMMAND_BYTES} bytes")
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        raise ValueError('expected JSON such as {"action": "reset", "stream": "pump-7"}') from None


def _action_in(payload: bytes | bytearray) -> str:
    """Return the action of an invalid request, or `UNKNOWN`."""
    try:
        data = _read(payload)
    except ValueError:
        return UNKNOWN
    action = data.get("action") if isinstance(data, dict) else None
    return action if isinstance(action, str) and action in set(Action) else UNKNOWN
