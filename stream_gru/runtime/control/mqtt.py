"""Commands over MQTT: a connection of its own that listens on one topic and answers each request.

A request is ``{"action": "reset", "stream": "pump-7"}`` or ``{"action": "pause", "all": true}``.  The answer goes to
the response topic of the request, with its correlation data, else to ``<topic>/response``: ``{"ok": true, "text":
"...", "streams": 1}``.  Who may send commands is the broker's business: its access list names
who may write to the topic.

Decision: a retained command is not carried out, else a stored "reset" would fire at each new connection.  One that was
sent while the daemon was away is not either: who sent it got no answer and may have sent another since.  So the session
ends with the connection; MQTT 3.1.1 cannot say that, but what is heard at QoS 0 is not kept for later.
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
from stream_gru.connectors.mqtt.callbacks import Handlers
from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.runtime.control.commands import (
    MAX_COMMAND_BYTES,
    Action,
    Command,
    CommandResult,
    Commands,
    parse_command,
)
from stream_gru.runtime.control.rejections import UNKNOWN, RejectedCommands

log = logging.getLogger(__name__)

_QOS = 1
_NOT_RETAINED = 2  # retain handling of MQTT 5: what is stored is not sent
_MAX_UNCONFIRMED = 256
# Longer requests are answered, but far longer ones do not reach us.
_MOST_BYTES = 2 * MAX_COMMAND_BYTES


@dataclass(frozen=True, slots=True)
class _ReturnAddress:
    """Where an answer goes."""

    topic: str
    correlation: bytes | None = None


class ControlMqtt:
    """Hands commands from ``topic`` to ``commands`` and publishes the answers; never raises for what is sent to it.

    ``refused`` is told of each command that does not reach ``commands``, stored ones too: the action (``unknown`` where
    it cannot be read) and a short text; it is called on the thread of the connection and must neither raise nor wait.
    """

    def __init__(
        self,
        config: ControlConfig,
        broker: BrokerConfig,
        commands: Commands,
        refused: Callable[[str, str], None] = lambda action, why: None,
    ) -> None:
        self._topic, self._commands = config.topic, commands
        self._refusals = RejectedCommands("MQTT", refused)
        self._newest = broker.protocol == "5"
        self._unconfirmed: set[int] = set()
        self._connection = Connection(
            replace(broker, session_expiry_s=0),
            client_id(broker, "control"),
            Handlers(
                connected=self._connected,
                message=self._message,
                published=self._published,
                subscribed=self._subscribed,
            ),
            payload_bytes=_MOST_BYTES,
        )
        self._client: Client | None = None
        self._listening = False

    @property
    def connected(self) -> bool:
        """Whether the broker lets us listen."""
        return self._connection.connected and self._listening

    def open(self) -> None:
        """Begin to connect; returns at once.  Raises ConfigError when credentials or certificates cannot be read."""
        self._connection.open()

    def close(self) -> None:
        """Disconnect; may be called twice."""
        self._connection.close()

    def _connected(self, client: Client, _: bool) -> None:
        self._client, self._listening = client, False
        if self._newest:
            client.subscribe(self._topic, options=SubscribeOptions(qos=_QOS, retainHandling=_NOT_RETAINED))
        else:
            client.subscribe(self._topic, 0)

    def _subscribed(self, _: int, refusals: Sequence[str]) -> None:
        for refusal in filter(None, refusals):
            log.error("commands: the broker does not let us listen on %s: %s", self._topic, refusal)
        self._listening = not any(refusals)

    def _published(self, mid: int, refusal: str) -> None:
        self._unconfirmed.discard(mid)
        if refusal:
            log.warning("commands: the broker did not take an answer: %s", refusal)

    def _message(self, message: MQTTMessage) -> None:
        """On the thread of the connection: acknowledge, and leave the command for the loop."""
        if self._client is not None and message.qos:
            self._client.ack(message.mid, message.qos)
        if message.retain:
            why = f"a retained message on {self._topic} is not carried out; delete it"
            self._refusals.tell(_action_in(message.payload), why)
            return
        address = self._address_of(message)
        try:
            action, stream = parse_command(_read(message.payload))
        except ValueError as error:
            self._refuse(address, _action_in(message.payload), str(error))
            return
        if not self._commands.put(Command(action, stream, lambda answer: self._answer(address, answer))):
            self._refuse(address, action, "too many commands are waiting")

    def _refuse(self, address: _ReturnAddress, action: str, why: str) -> None:
        self._refusals.tell(str(action), why)
        self._answer(address, CommandResult(False, why))

    def _address_of(self, message: MQTTMessage) -> _ReturnAddress:
        """The response topic of a request, unless it is our own, the broker's, or a filter."""
        properties: Any = message.properties
        wanted = getattr(properties, "ResponseTopic", "")
        if not wanted or wanted == self._topic or wanted.startswith("$") or any(letter in wanted for letter in "+#\0"):
            wanted = f"{self._topic}/response"
        return _ReturnAddress(wanted, getattr(properties, "CorrelationData", None))

    def _answer(self, address: _ReturnAddress, answer: CommandResult) -> None:
        """Publish an answer; from any thread."""
        payload = json.dumps(answer.as_dict()).encode()

        def publish(client: Client) -> None:
            if len(self._unconfirmed) >= _MAX_UNCONFIRMED:
                log.warning("commands: an answer is dropped: the broker does not confirm those before it")
                return
            self._unconfirmed.add(
                client.publish(address.topic, payload, _QOS, properties=self._properties(address)).mid
            )

        self._connection.later(publish)

    def _properties(self, address: _ReturnAddress) -> Properties | None:
        if not self._newest:
            return None
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ContentType = "application/json"
        properties.PayloadFormatIndicator = 1
        if address.correlation is not None:
            properties.CorrelationData = address.correlation
        return properties


def _read(payload: bytes | bytearray) -> object:
    """The JSON of a request.  Raises ValueError."""
    if len(payload) > MAX_COMMAND_BYTES:
        raise ValueError(f"expected at most {MAX_COMMAND_BYTES} bytes")
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        raise ValueError('expected JSON such as {"action": "reset", "stream": "pump-7"}') from None


def _action_in(payload: bytes | bytearray) -> str:
    """The action of a request that is no command, as far as it can be read."""
    try:
        data = _read(payload)
    except ValueError:
        return UNKNOWN
    action = data.get("action") if isinstance(data, dict) else None
    return action if isinstance(action, str) and action in set(Action) else UNKNOWN
