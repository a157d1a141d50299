"""Streams that a broker still calls ``online`` since an earlier run, which nobody was there to take back.

    connected ──▶ SUBSCRIBE ──▶ retained messages ──▶ `stream_of` ──▶ a few seconds ──▶ UNSUBSCRIBE ──▶ done

Decision: what another daemon has said is left alone.  It is known by the client id that goes with it; MQTT 3.1.1 has no
room for one, and there each daemon needs an ``availability_topic`` of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from stream_gru.config.topic_filters import stream_filters, stream_in
from stream_gru.connectors.mqtt.publisher import SENDER

log = logging.getLogger(__name__)

# Brokers send retained messages soon after they have granted the subscription; they do not say when it was the last.
_LISTEN_S = 5.0


class Leftovers:
    """Asks once in the life of a process; all methods belong to the thread of the connection.

    ``template``: topic of a stream's availability, empty for none; ``speaker``: our client id.
    """

    def __init__(self, template: str, speaker: str, clock: Callable[[], float]) -> None:
        self._template, self._speaker, self._clock = template, speaker, clock
        # Where any first level would do, what has no speaker is most likely the word of another program.
        self._strict = "{stream}" in template.split("/")[0]
        self._filters = stream_filters(template) if template else []
        self._asked = self._leaving = 0
        self._until = 0.0
        self.done = not template

    def connected(self, client: Client, *, cut: bool) -> None:
        """Ask, until it was once brought to its end; not again where the broker may have ``cut`` us for it."""
        self._asked = self._leaving = 0
        self._until = 0.0
        self.done = self.done or cut
        if self.done:
            return
        if client.protocol == MQTTProtocolVersion.MQTTv5:  # noLocal would keep from us what we ourselves have said
            _, mid = client.subscribe([(text, SubscribeOptions(qos=1)) for text in self._filters])
        elif self._strict:
            self.done = True
            return
        else:
            _, mid = client.subscribe([(text, 1) for text in self._filters])
        self._asked = mid or 0

    def subscribed(self, mid: int, refusals: Sequence[str]) -> None:
        """The broker's answer."""
        if not self._asked or mid != self._asked:
            return
        self._until = self._clock() + _LISTEN_S
        refusal = next(filter(None, refusals), "")
        if refusal:
            log.warning(
                "the broker does not let us read %s: streams of an earlier run may stay online: %s",
                self._filters[0], refusal,
            )  # fmt: skip

    def turn(self, client: Client) -> None:
        """Ask for no more once all must have come."""
        if self._until and not self._leaving and self._clock() >= self._until:
            _, mid = client.unsubscribe(self._filters)
            self._leaving = mid or 0

    def unsubscribed(self, mid: int) -> None:
        """The broker has forgotten our question."""
        self.done = self.done or (self._leaving != 0 and mid == self._leaving)

    def stream_of(self, message: MQTTMessage) -> str:
        """The stream that a retained message calls online on our behalf; "" for every other message."""
        if self.done or not message.retain or bytes(message.payload) != b"online":
            return ""
        properties: Any = message.properties
        speaker = dict(getattr(properties, "UserProperty", ())).get(SENDER, "")
        if speaker != self._speaker and (speaker or self._strict):
            return ""
        return stream_in(self._template, message.topic)
