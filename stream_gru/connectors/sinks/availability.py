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


class StreamAvailability:
    """Which streams are online and which are offline; thread-safe.

    Bounded: the ``max_offline`` streams that went offline last are remembered, and beyond ``max_online`` the one that
    came online first counts as offline until its next output.
    """

    def __init__(self, max_online: int = 1_000_000, max_offline: int = 100_000) -> None:
        self._max_online, self._max_offline = max_online, max_offline
        self._lock = threading.Lock()
        self._online: OrderedDict[str, None] = OrderedDict()
        self._offline: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            return len(self._online) + len(self._offline)

    def get(self, stream: str) -> bool | None:
        """Whether a stream is online; None for an unknown one."""
        with self._lock:
            return True if stream in self._online else False if stream in self._offline else None

    def put(self, stream: str, online: bool) -> str:
        """Set a stream online or offline; return the one that it displaces, which is offline now, "" for none."""
        with self._lock:
            self._online.pop(stream, None)
            self._offline.pop(stream, None)
            (self._online if online else self._offline)[stream] = None
            displaced = ""
            if len(self._online) > self._max_online:
                displaced, _ = self._online.popitem(last=False)
                self._offline[displaced] = None
            if len(self._offline) > self._max_offline:
                self._offline.popitem(last=False)
            return displaced

    def items(self) -> list[tuple[str, bool]]:
        """All known streams, each with whether it is online."""
        with self._lock:
            return [*((stream, False) for stream in self._offline), *((stream, True) for stream in self._online)]

    def names(self) -> list[str]:
        """All known streams."""
        return [stream for stream, _ in self.items()]


log = logging.getLogger(__name__)

# Brokers send retained messages soon after they have granted the subscription; they do not say when it was the last.
_LISTEN_S = 5.0


class StaleAvailability:
    """Finds retained ``online`` messages of an earlier run, once; all methods belong to the thread of the connection.

    ``template``: topic of a stream's availability, empty for none; ``sender``: the label of this sink.
    """

    def __init__(self, template: str, sender: str, clock: Callable[[], float]) -> None:
        self._template, self._sender, self._clock = template, sender, clock
        # With any first level, a message without a sender most likely is from another program.
        self._strict = "{stream}" in template.split("/")[0]
        self._filters = stream_filters(template) if template else []
        self._subscribing = self._unsubscribing = 0
        self._until = 0.0
        self.done = not template

    def connected(self, client: Client, *, cut: bool) -> None:
        """Subscribe, until it was completed once; not after a connection that may have been ``cut`` because of it."""
        self._subscribing = self._unsubscribing = 0
        self._until = 0.0
        self.done = self.done or cut
        if self.done:
            return
        if client.protocol == MQTTProtocolVersion.MQTTv5:  # noLocal would hide this client's own messages
            _, mid = client.subscribe([(text, SubscribeOptions(qos=1)) for text in self._filters])
        elif self._strict:
            self.done = True
            return
        else:
            _, mid = client.subscribe([(text, 1) for text in self._filters])
        self._subscribing = mid or 0

    def subscribed(self, mid: int, refusals: Sequence[str]) -> None:
        """The broker's response."""
        if not self._subscribing or mid != self._subscribing:
            return
        self._until = self._clock() + _LISTEN_S
        refusal = next(filter(None, refusals), "")
        if refusal:
            log.warning(
                "no permission to read %s: streams of an earlier run may stay online: %s",
                self._filters[0], refusal,
            )  # fmt: skip

    def on_idle(self, client: Client) -> None:
        """Unsubscribe once all retained messages have come."""
        if self._until and not self._unsubscribing and self._clock() >= self._until:
            _, mid = client.unsubscribe(self._filters)
            self._unsubscribing = mid or 0

    def unsubscribed(self, mid: int) -> None:
        """The broker has removed the subscription."""
        self.done = self.done or (self._unsubscribing != 0 and mid == self._unsubscribing)

    def stream_of(self, message: MQTTMessage) -> str:
        """The stream that a retained message of this client calls online; "" for every other message."""
        if self.done or not message.retain or bytes(message.payload) != b"online":
            return ""
        properties: Any = message.properties
        sender = dict(getattr(properties, "UserProperty", ())).get(SENDER, "")
        if sender != self._sender and (sender or self._strict):
            return ""
        return stream_in(self._template, message.topic)
