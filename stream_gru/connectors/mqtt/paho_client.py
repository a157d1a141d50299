"""Paho's client, made to understand every refusal of a publish.

Mosquitto 2.0 refuses a payload beyond its message_size_limit with a PUBACK of reason 0x95, packet too large.  MQTT 5
does not list that reason for a PUBACK, so paho 2.2 does not decode it and ends the connection; sent again on the next
one, the same payload would end that too, for ever.

Decision: the packet is changed before paho decodes it, in a subclass and not in paho's tables, which every client of
the process shares.  Should a later paho be made differently, this does nothing, and the connection counts as cut.

`Handlers` are what a connection asks of its owner and what it reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

_UNSPECIFIED = 0x80  # the first failure; paho knows it in every answer
_REASON_AT = 2  # behind the packet identifier


class TolerantClient(Client):
    """Reports a PUBACK of an unknown failure as "unspecified error" and keeps the connection.

    ``unlisted``: while `on_publish` is called, the reason that the broker gave; 0 when paho knows it.
    """

    unlisted = 0

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        self.unlisted = self._replace_unlisted() if cmd == "PUBACK" else 0
        try:
            return super()._handle_pubackcomp(cmd)
        finally:
            self.unlisted = 0

    def _replace_unlisted(self) -> int:
        """Put a reason that paho knows into the PUBACK that came; returns the one it did not know, or 0."""
        try:
            packet = self._in_packet["packet"]
            if self._protocol != MQTTProtocolVersion.MQTTv5 or len(packet) <= _REASON_AT:
                return 0
            reason = packet[_REASON_AT]
            if reason < _UNSPECIFIED or _name(PacketTypes.PUBACK, reason):
                return 0
            packet[_REASON_AT] = _UNSPECIFIED
        except (AttributeError, LookupError, TypeError):  # not the paho we know
            return 0
        return reason


def refusal(code: ReasonCode, unlisted: int = 0) -> str:
    """Why something was refused; empty when it was not.  ``unlisted``: the reason in place of which ``code`` stands."""
    if unlisted:
        # What is unusual in an answer is usual in the broker's farewell, and named there.
        return _name(PacketTypes.DISCONNECT, unlisted) or f"reason 0x{unlisted:02x}"
    return str(code) if code.is_failure else ""


def _name(packet_type: int, reason: int) -> str:
    """What a reason is called in this type of packet; empty when it does not belong there."""
    try:
        return str(ReasonCode(packet_type, identifier=reason))
    except (KeyError, ValueError):
        return ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker lets through, as it said when it let us in; MQTT 3.1.1 says nothing."""

    max_packet_bytes: int = 268_435_460
    receive_maximum: int = 65_535
    max_qos: int = 2
    retain: bool = True
    session_expiry_s: int | None = None


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says for us when we are gone without a word; retained.  ``delay_s``: of MQTT 5 only."""

    topic: str
    payload: bytes
    delay_s: int = 10


def _nothing(*_: object) -> None:
    """For what an owner does not want to know."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """Called on the thread of the connection, which alone touches the client; none may wait.

    ``connected(client, session_present)``  the broker has let us in
    ``message(message)``                    a message came
    ``published(mid, refusal)``             the broker has it, or says why it does not want it
    ``subscribed(mid, refusals)``           one text for each filter asked for, empty where granted
    ``unsubscribed(mid)``                   done
    ``turn(client)``                        again and again while connected, and after each `Connection.wake`
    ``wants_input()``                       whether more may be read; while not, the broker has to wait
    """

    connected: Callable[[Client, bool], None] = _nothing
    message: Callable[[MQTTMessage], None] = _nothing
    published: Callable[[int, str], None] = _nothing
    subscribed: Callable[[int, Sequence[str]], None] = _nothing
    unsubscribed: Callable[[int], None] = _nothing
    turn: Callable[[Client], None] = _nothing
    wants_input: Callable[[], bool] = lambda: True
