"""End to end: device, broker, daemon, broker, subscriber, with a real broker and a real daemon."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from paho.mqtt.client import Client, MQTTMessageInfo
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support.brokers import Broker, Subscriber
from tests.support.daemons import Running, mqtt_config, pump_records, replayed
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]


def publish_all(
    port: int, records: dict[str, list[dict[str, float]]], faults: dict[int, Callable[[], bool]] | None = None
) -> None:
    """Publish every record with QoS 1, streams interleaved; at certain record numbers inject a broker fault.

    A fault returns whether connections are lost.  Then the device waits until the broker has all messages and continues
    once it is reconnected: paho reorders messages published during a reconnect.  The daemon runs throughout.
    """
    client = Client(CallbackAPIVersion.VERSION2, client_id="device", protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(200)
    client.reconnect_delay_set(1, 1)
    connects: list[int] = []
    client.on_connect = lambda *_: connects.append(1)
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 3600
    client.connect("127.0.0.1", port, clean_start=False, properties=properties)
    client.loop_start()
    left = {stream: iter(rows) for stream, rows in records.items()}
    order = [stream for stream, rows in records.items() for _ in rows]
    random.Random(1).shuffle(order)
    sent: list[MQTTMessageInfo] = []
    for number, stream in enumerate(order):
        sent.append(client.publish(f"sensors/{stream}/data", json.dumps(next(left[stream])), qos=1))
        if faults and number in faults:
            _await_all(sent)
            before = len(connects)
            if faults[number]():
                wait_for(lambda: len(connects) > before, what="the device's connection")  # noqa: B023
    _await_all(sent)
    client.disconnect()
    client.loop_stop()


def _await_all(sent: list[MQTTMessageInfo]) -> None:
    for info in sent:
        info.wait_for_publish(120)
    sent.clear()


def live_config(folder: Path, broker: Broker) -> Path:
    """A configuration for this broker."""
    path = folder / "gateway.toml"
    file = f'[[sink]]\ntype = "file"\npath = "{folder}/out.jsonl"\n'
    path.write_text(mqtt_config(broker.url, run=f'state_dir = "{folder}"') + file)
    return path


@pytest.mark.parametrize("name", ["out", "control", "sink", "sink-mqtt"])
def test_a_source_of_any_name_keeps_its_connection(tmp_path: Path, name: str) -> None:
    """No source shares a client id with the sink or the command topic of its daemon, so no session is taken over."""
    with Broker(tmp_path) as broker:
        text = mqtt_config(broker.url).replace('type = "mqtt"\ntopics', f'type = "mqtt"\nname = "{name}"\ntopics')
        (tmp_path / "gateway.toml").write_text(f"{text}[control]\nmqtt = true\n")
        subscriber = Subscriber(broker.port)
        with Running(tmp_path / "gateway.toml") as daemon:
            daemon.wait_for_sources(name)
            publish_all(broker.port, pump_records(1, 20))
            wait_for(lambda: len(subscriber.rows) >= 20, what="all predictions")
            assert daemon.metric(f'stream_gru_source_reconnects_total{{source="{name}"}}') == 0
            daemon.stop()
        subscriber.close()
        assert "another client" not in daemon.text()


def test_twenty_thousand_messages_of_two_hundred_streams_equal_a_replay(tmp_path: Path) -> None:
    """Every prediction a subscriber receives is, byte for byte, a row of the replay of the samples; none is missing."""
    records = pump_records(200, 100)
    expected = replayed(records, tmp_path)
    assert len(expected) == 20_000
    with Broker(tmp_path) as broker:
        subscriber = Subscriber(broker.port)
        with Running(live_config(tmp_path, broker)) as daemon:
            daemon.wait_for_sources("mqtt")
            publish_all(broker.port, records)
            wait_for(lambda: len(subscriber.rows) >= 20_000, timeout_s=120, what="all predictions")
            daemon.stop()
        subscriber.close()
    assert sorted(subscriber.rows) == expected
    assert sorted((tmp_path / "out.jsonl").read_bytes().splitlines()) == expected


@pytest.mark.parametrize("fault", ["restart", "freeze"])
def test_broker_faults_lose_no_output(fault: str, tmp_path: Path) -> None:
    """However often the broker restarts or hangs, every output is delivered at least once under one id; none is
    missing.
    """
    records = pump_records(200, 100)
    expected = replayed(records, tmp_path)
    with Broker(tmp_path) as broker:

        def strike() -> bool:
            if fault == "restart":
                broker.stop()
                broker.start()
            else:
                broker.freeze()
                threading.Timer(4.0, broker.thaw).start()
            return fault == "restart"

        subscriber = Subscriber(broker.port)
        with Running(live_config(tmp_path, broker)) as daemon:
            daemon.wait_for_sources("mqtt")
            publish_all(broker.port, records, {3000: strike, 9000: strike, 15_000: strike})
            wait_for(lambda: len(subscriber.rows) >= 20_000, timeout_s=180, what="all predictions")
            daemon.stop()
        subscriber.close()
    assert sorted(subscriber.rows) == expected
    assert len(subscriber.ids) == 20_000
    assert all(len(payloads) == 1 for payloads in subscriber.ids.values())


@pytest.mark.parametrize("fault", ["kill", "wipe"])
def test_a_broker_that_forgets_is_survived(fault: str, tmp_path: Path) -> None:
    """Messages the broker lost are lost; the daemon continues, counts a lost session, and accounts for every received
    one.
    """
    records = pump_records(20, 200)
    first, later = ({stream: rows[half] for stream, rows in records.items()} for half in (slice(100), slice(100, 200)))
    with Broker(tmp_path) as broker:

        def strike() -> bool:
            broker.kill()
            if fault == "wipe":
                broker.forget()
            broker.start()
            return True

        with Running(live_config(tmp_path, broker)) as daemon:
            daemon.wait_for_sources("mqtt")
            publish_all(broker.port, first, {1000: strike})
            daemon.wait_for_sources("mqtt")
            lost = daemon.metric('stream_gru_source_sessions_lost_total{source="mqtt"}')
            assert lost == 1 if fault == "wipe" else lost in (0, 1)
            publish_all(broker.port, later)
            out, devices = tmp_path / "out.jsonl", {f"dev-{device}" for device in range(20)}

            def heard() -> set[str]:
                rows = [json.loads(row) for row in out.read_bytes().splitlines()]
                return {row["stream"] for row in rows if row["time"] == "2026-03-01T00:03:19Z"}

            wait_for(lambda: heard() == devices, timeout_s=60, what="the last sample of every stream")
            counted = [
                daemon.metric(f'stream_gru_samples_{name}_total{{source="mqtt"}}') for name in ("received", "applied")
            ]
            output = daemon.stop()
    received, applied = counted
    assert received is not None
    assert applied is not None
    assert 2000 <= applied <= min(4000, received)
    assert "unaccounted" not in output
