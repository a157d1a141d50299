"""Large payloads, valid or not, neither exhaust the memory of a real daemon nor get lost."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.support.brokers import Broker
from tests.support.daemons import BEGIN_S, Running, mqtt_config
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]

PAYLOADS, ROWS, GARBAGE = 40, 1700, 32_000
LIMIT_MIB = 160
HEADER = "ts,flow,pressure,current,vibration\n"


def valid(number: int) -> bytes:
    """A CSV payload of some 60 kB."""
    seconds = range(BEGIN_S + number * ROWS, BEGIN_S + (number + 1) * ROWS)
    return (HEADER + "".join(f"{second},{100 + second % 7}.5,300.25,5.1,1.5\n" for second in seconds)).encode()


def garbage(_: int) -> bytes:
    """64 kB of the shortest lines."""
    return b",\n" * GARBAGE


@pytest.mark.parametrize(("payload", "records", "applied"), [(valid, ROWS, True), (garbage, GARBAGE, False)])
def test_a_flood_of_large_payloads_stays_within_the_memory_limit(
    tmp_path: Path, payload: object, records: int, applied: bool
) -> None:
    """Resident memory stays below 160 MiB under a kernel limit; every record is applied or counted as dropped."""
    with Broker(tmp_path) as broker:
        config = tmp_path / "gateway.toml"
        sink = 'type = "file"\npath = "out.jsonl"'
        text = mqtt_config(broker.url, run='state_dir = "state"', sink=sink)
        config.write_text(text.replace('"json"', '"csv"'))
        with Running(config) as daemon:
            resource.prlimit(daemon.process.pid, resource.RLIMIT_DATA, (256 * 2**20, 256 * 2**20))
            daemon.wait_for_sources("mqtt")
            client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
            client.connect("127.0.0.1", broker.port)
            client.loop_start()
            for number in range(PAYLOADS):
                content = payload(number)  # type: ignore[operator]
                client.publish("sensors/pump-1/data", content, qos=1).wait_for_publish(60)
            client.disconnect()
            client.loop_stop()
            received = 'stream_gru_samples_received_total{source="mqtt"}'
            wait_for(lambda: daemon.metric(received) == PAYLOADS * records, what="all records", timeout_s=120)
            status = Path(f"/proc/{daemon.process.pid}/status").read_text()
            done = daemon.stop()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    assert int(peak[1]) < LIMIT_MIB * 1024
    rows = (tmp_path / "out.jsonl").read_bytes().count(b"\n")
    assert rows == (PAYLOADS * records if applied else 0), done
