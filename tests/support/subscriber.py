"""Somebody who hears every prediction, over restarts of the broker."""

from __future__ import annotations

import threading
from collections import Counter

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties


class Subscriber:
    """Keeps every prediction with how often it came, over all connections."""

    def __init__(self, port: int) -> None:
        self.rows: Counter[bytes] = Counter()
        self.ids: dict[str, set[bytes]] = {}
        self._lock = threading.Lock()
        self.client = Client(CallbackAPIVersion.VERSION2, client_id="subscriber", protocol=MQTTProtocolVersion.MQTTv5)
        self.client.on_message = self._keep
        granted = threading.Event()
        self.client.on_subscribe = lambda *_: granted.set()
        self.client.on_connect = lambda client, *_: client.subscribe("stream_gru/+/prediction", qos=1)
        self.client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        self.client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        self.client.loop_start()
        assert granted.wait(20), "the subscriber was granted nothing"

    def _keep(self, _: Client, __: object, message: MQTTMessage) -> None:
        (name,) = [value for key, value in message.properties.UserProperty if key == "id"]  # type: ignore[union-attr]
        payload = bytes(message.payload)
        with self._lock:
            self.rows[payload] += 1
            self.ids.setdefault(name, set()).add(payload)

    def close(self) -> None:
        """Leave."""
        self.client.disconnect()
        self.client.loop_stop()
