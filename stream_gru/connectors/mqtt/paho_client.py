"""Paho's client with two fixes, and the records that a connection and its owner exchange.

Mosquitto 2.0 refuses a payload beyond its message_size_limit with a PUBACK of reason 0x95, packet too large.  MQTT 5
does not list that reason for a PUBACK, so paho 2.2 fails to decode it and closes the connection; the same payload, sent
again on the next connection, would close that too.

Paho rejects some properties that brokers pass on, such as a user property with U+FEFF, and closes the connection.  The
message would be delivered again, and close the next one too.

Decision: the packet is changed before paho decodes it, in a subclass and not in paho's tables, which all clients of the
process share.  With a paho whose internals differ this does nothing, and the connection counts as cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.exception import MalformedPacket
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

_UNSPECIFIED = 0x80  # the first failure code; paho knows it in every packet
_REASON_AT = 2  # after the packet identifier
_QOS_BITS = 6


class PahoClient(Client):
    """Treats a PUBACK with an unlisted failure as "unspecified error", ignores properties that it cannot read.

    The connection stays open in both cases.
    ``unlisted``: during `on_publish`, the unlisted reason that the broker gave, else 0.
    """

    unlisted = 0

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        self.unlisted = self._replace_unlisted() if cmd == "PUBACK" else 0
        try:
            return super()._handle_pubackcomp(cmd)
        finally:
            self.unlisted = 0

    def _replace_unlisted(self) -> int:
        """Put a reason that paho knows into the received PUBACK; return the one that it does not know, or 0."""
        try:
            packet = self._in_packet["packet"]
            if self._protocol != MQTTProtocolVersion.MQTTv5 or len(packet) <= _REASON_AT:
                return 0
            reason = packet[_REASON_AT]
            if reason < _UNSPECIFIED or _name(PacketTypes.PUBACK, reason):
                return 0
            packet[_REASON_AT] = _UNSPECIFIED
        except (AttributeError, LookupError, TypeError):  # another paho
            return 0
        return reason

    def _handle_publish(self) -> MQTTErrorCode:
        try:
            return super()._handle_publish()
        except MalformedPacket:
            if not self._remove_properties():
                raise
            return super()._handle_publish()

    def _remove_properties(self) -> bool:
        """Empty the properties of the received PUBLISH; return whether there were any."""
        try:
            packet = self._in_packet["packet"]
            has_mid = self._in_packet["command"] & _QOS_BITS
            begin = end = 2 + int.from_bytes(packet[:2], "big") + (2 if has_mid else 0)
            size = 0
            while packet[end] & 128:
                size |= (packet[end] & 127) << 7 * (end - begin)
                end += 1
            size |= packet[end] << 7 * (end - begin)
            if self._protocol != MQTTProtocolVersion.MQTTv5 or not 0 < size < len(packet) - end:
                return False
            packet[begin : end + 1 + size] = b"\0"
        except (AttributeError, LookupError, TypeError):  # another paho, or a truncated packet
            return False
        return True


def refusal(code: ReasonCode, unlisted: int = 0) -> str:
    """Why the broker refused something; empty when it did not.  ``unlisted``: the reason that ``code`` replaced."""
    if unlisted:
        # The reason has a name in DISCONNECT packets.
        return _name(PacketTypes.DISCONNECT, unlisted) or f"reason 0x{unlisted:02x}"
    return str(code) if code.is_failure else ""


def topic_of(message: MQTTMessage) -> tuple[str, bool]:
    """The topic, and whether it is UTF-8 as it has to be; other bytes are shown as numbers."""
    try:
        return message.topic, True
    except UnicodeDecodeError as error:  # paho decodes when it is asked
        return error.object.decode(errors="backslashreplace"), False


def _name(packet_type: int, reason: int) -> str:
    """The name of a reason in this type of packet; empty when it does not belong there."""
    try:
        return str(ReasonCode(packet_type, identifier=reason))
    except (KeyError, ValueError):
        return ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker accepts, as its CONNACK says; MQTT 3.1.1 says nothing."""

    max_packet_bytes: int = 268_435_460
    receive_maximum: int = 65_535
    max_qos: int = 2
    retain: bool = True
    session_expiry_s: int | None = None


@dataclass(frozen=True, slots=True)
class Will:
    """The retained message that the broker publishes when the connection is lost.  ``delay_s``: MQTT 5 only."""

    topic: str
    payload: bytes
    delay_s: int = 10


def _ignore(*_: object) -> None:
    """For events that an owner does not handle."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """Called on the thread of the connection, which alone uses the client; none may block.

    ``connected(client, session_present)``  the broker has accepted the connection
    ``message(message)``                    a message came
    ``published(mid, refusal)``             the broker has acknowledged a message, or refused it with this reason
    ``subscribed(mid, refusals)``           one text for each filter, empty where granted
    ``unsubscribed(mid)``                   done
    ``on_idle(client)``                     repeatedly while connected, and after each `Connection.wake`
    ``wants_input()``                       whether more may be read; while not, the broker has to wait
    """

    connected: Callable[[Client, bool], None] = _ignore
    message: Callable[[MQTTMessage], None] = _ignore
    published: Callable[[int, str], None] = _ignore
    subscribed: Callable[[int, Sequence[str]], None] = _ignore
    unsubscribed: Callable[[int], None] = _ignore
    on_idle: Callable[[Client], None] = _ignore
    wants_input: Callable[[], bool] = lambda: True
