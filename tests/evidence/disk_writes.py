"""Measure what a daemon writes to the disk for each sample, by the kernel's counter.

Run by ``make disk-writes`` as ``python -m tests.evidence.disk_writes``: MQTT messages of one sample, one a second from
each stream, with the values of the shipped recording.  Outputs to a file are counted apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from stream_gru.connectors.folders import disk_bytes
from tests.support.brokers import Broker
from tests.support.daemons import Running, mqtt_config, pump_records

_SINKS = {"file": 'type = "file"\npath = "out.jsonl"', "mqtt": 'type = "mqtt"'}
_SETTLE_S = 10
_PART = 'stream_gru_disk_written_bytes_total{part="state"}'


@dataclass(frozen=True)
class Written:
    """Bytes a sample: of the state by the daemon's metric, and of the whole process by the kernel."""

    state: float
    process: float


def main() -> None:
    """Measure the rows of the table in docs/delivery.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=int, default=120)
    options = parser.parse_args()
    for interval_s, sink in ((1.0, "file"), (1.0, "mqtt"), (10.0, "file")):
        found = measure(options.streams, options.seconds, interval_s, sink)
        daily = found.state * options.streams * 86_400 / 1e9
        print(  # noqa: T201
            f"{options.streams} streams, commit_interval_s = {interval_s:g}, sink {sink}: state {found.state:.0f} B "
            f"a sample, {daily:.1f} GB a day; process {found.process:.0f} B a sample"
        )


def measure(streams: int, seconds: int, interval_s: float, sink: str) -> Written:
    """Run a daemon for so long; the first seconds are not counted."""
    with tempfile.TemporaryDirectory() as name, Broker(Path(name)) as broker:
        config = Path(name, "gateway.toml")
        run = f'state_dir = "state"\ncommit_interval_s = {interval_s}'
        config.write_text(mqtt_config(broker.url, run=run, sink=_SINKS[sink]))
        client = Client(CallbackAPIVersion.VERSION2, "devices")
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        with Running(config) as daemon:
            daemon.wait_for_sources("mqtt")
            process = str(daemon.process.pid)
            publish(client, streams, range(_SETTLE_S))
            state, all_parts = daemon.metric(_PART) or 0.0, disk_bytes(process)
            publish(client, streams, range(_SETTLE_S, _SETTLE_S + seconds))
            samples = streams * seconds
            found = Written(
                ((daemon.metric(_PART) or 0.0) - state) / samples, (disk_bytes(process) - all_parts) / samples
            )
            daemon.stop()
        client.disconnect()
        client.loop_stop()
    return found


def publish(client: Client, streams: int, seconds: Sequence[int]) -> None:
    """Publish a sample of each stream in each second, evenly."""
    records = list(pump_records(streams, seconds[-1] + 1).values())
    begin = time.monotonic()
    for turn, second in enumerate(seconds):
        for stream in range(streams):
            client.publish(f"sensors/p{stream}/data", json.dumps(records[stream][second]), 1)
            if stream % 25 == 0:
                time.sleep(max(0.0, begin + turn + stream / streams - time.monotonic()))
    time.sleep(max(0.0, begin + len(seconds) - time.monotonic()))


if __name__ == "__main__":
    main()
