"""Paho's client, made to understand every refusal of a publish.

Mosquitto 2.0 refuses a payload beyond its message_size_limit with a PUBACK of reason 0x95, packet too large.  MQTT 5
does not list that reason for a PUBACK, so paho 2.2 does not decode it and ends the connection; sent again on the next
one, the same payload would end that too, for ever.

Decision: the packet is changed before paho decodes it, in a subclass and not in paho's tables, which every client of
the process shares.  Should a later paho be made differently, this does nothing, and the connection counts as cut.
"""

from __future__ import annotations

from typing import Literal

from paho.mqtt.client import Client
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
