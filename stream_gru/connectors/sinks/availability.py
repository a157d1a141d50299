"""Availability topics: which streams were announced as ``online`` or ``offline``, also by an earlier run.

    connected ──▶ SUBSCRIBE ──▶ retained messages ──▶ `stream_of` ──▶ a few seconds ──▶ UNSUBSCRIBE ──▶ done

Streams that a broker still retains as ``online`` from an earlier run are announced as offline.

Decision: messages of other daemons are left alone.  They are known by the client id in the message; MQTT 3.1.1 has no
room for one, so there each daemon needs an ``availability_topic`` of its own.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.subscribeoptions import SubscribeOptions

from stream_gru.config.topic_filters import stream_filters, stream_in
from stream_gru.connectors.mqtt.publisher import SENDER


class Presence:
    """Which streams are online and which are not; any thread may ask.

    Bounded, however many streams come and go: of those offline the ``most_offline`` that went last are remembered, and
    beyond ``most_online`` the one that came online first counts as offline, until it is heard again.
    """

    def __init__(self, most_online: int = 1_000_000, most_offline: int = 100_000) -> None:
        self._most_online, self._most_offline = most_online, most_offline
        self._lock = threading.Lock()
        self._online: OrderedDict[str, None] = OrderedDict()
        self._offline: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            return len(self._online) + len(self._offline)

    def get(self, stream: str) -> bool | None:
        """Whether a stream is online; None for one that is unknown."""
        with self._lock:
            return True if stream in self._online else False if stream in self._offline else None

    def put(self, stream: str, online: bool) -> str:
        """Note how a stream is; return the one that counts as offline now to make room, "" for none."""
        with self._lock:
            self._online.pop(stream, None)
            self._offline.pop(stream, None)
            (self._online if online else self._offline)[stream] = None
            displaced = ""
            if len(self._online) > self._most_online:
                displaced, _ = self._online.popitem(last=False)
                self._offline[displaced] = None
            if len(self._offline) > self._most_offline:
                self._offline.popitem(last=False)
            return displaced

    def items(self) -> list[tuple[str, bool]]:
        """All that are known, each with whether it is online."""
        with self._lock:
            return [*((stream, False) for stream in self._offline), *((stream, True) for stream in self._online)]

    def names(self) -> list[str]:
        """All that are known."""
        return [stream for stream, _ in self.items()]


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
