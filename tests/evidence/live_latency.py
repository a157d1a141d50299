"""Latency of a prediction through a real broker: device, broker, daemon, broker, subscriber.

    python -m tests.evidence.live_latency [RATE ...]

publishes bare JSON of ten devices at each rate (messages a second; 100 and 1000 by default) for ten seconds and prints
the time from the publish to the arrival of the prediction: without a store, with one and ``emit = "immediate"``, and
with ``emit = "after_commit"``, where a prediction that arrives is durable.  Needs mosquitto.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import NS_PER_S
from tests.support.brokers import Broker
from tests.support.daemons import Running, mqtt_config, pump_records
from tests.support.waiting import wait_for

_SECONDS = 10
_DEVICES = 10


_WAYS = {
    "no store": "",
    "immediate": 'state_dir = "state"\nemit = "immediate"',
    "after_commit": 'state_dir = "state"',
}


def measure(rate: int, run: str) -> list[float]:
    """Milliseconds from publish to prediction of each message, sorted."""
    records = pump_records(_DEVICES, rate * _SECONDS // _DEVICES)
    heard: dict[str, float] = {}
    sent: dict[str, float] = {}

    def keep(_: Client, __: object, message: MQTTMessage) -> None:
        heard[json.loads(message.payload)["id"]] = time.perf_counter()

    with tempfile.TemporaryDirectory() as name, Broker(Path(name), lines=["set_tcp_nodelay true"]) as broker:
        config = Path(name) / "gateway.toml"
        config.write_text(mqtt_config(broker.url, run=run))
        with Running(config) as daemon:
            clients = [Client(CallbackAPIVersion.VERSION2) for _ in range(2)]
            listener, device = clients
            listener.on_message = keep
            for client in clients:
                client.connect("127.0.0.1", broker.port)
                client.loop_start()
            listener.subscribe("stream_gru/+/prediction", 1)
            daemon.wait_for_sources("mqtt")
            begin = time.perf_counter() + 0.5
            rows = [(stream, rows[at]) for at in range(len(records["dev-0"])) for stream, rows in records.items()]
            for number, (stream, row) in enumerate(rows):
                while (left := begin + number / rate - time.perf_counter()) > 0:
                    time.sleep(min(left, 0.001))
                (when,) = format_iso(np.array([int(row["ts"]) * NS_PER_S]))
                sent[f"{stream}/{when}"] = time.perf_counter()
                device.publish(f"sensors/{stream}/data", json.dumps(row), qos=1)
            wait_for(lambda: len(heard) >= len(sent), what="all predictions")
            for client in clients:
                client.disconnect()
                client.loop_stop()
            daemon.stop()
    return sorted(1000 * (heard[key] - at) for key, at in sent.items())


def main() -> None:
    """Print a line for each rate."""
    for rate in [int(word) for word in sys.argv[1:]] or [100, 1000]:
        for way, run in _WAYS.items():
            delays = measure(rate, run)
            shown = ", ".join(f"p{q} {delays[q * (len(delays) - 1) // 100]:.1f} ms" for q in (50, 95, 99))
            print(f"{rate} messages/s, {way}: {shown}, longest {delays[-1]:.1f} ms", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
