"""Client ids at a broker: a session that follows the state folder, a second client, and invalid packets."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.auth import stored_client_id
from stream_gru.connectors.sinks.mqtt import MqttSink, MqttSinkConfig
from stream_gru.connectors.sources.mqtt import MqttSource
from stream_gru.core.types import DropReason
from tests.faults.test_mqtt_source import message_numbers, open_source, receive, source_table
from tests.support.brokers import Broker
from tests.support.daemons import Running, mqtt_config, pump_records
from tests.support.requirements import needs_mosquitto
from tests.support.scripted_broker import ScriptedBroker
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers]

RIVAL = "another client connects as"


def write_config(folder: Path, broker: Broker) -> Path:
    """A daemon without a ``client_id`` whose state is beside its configuration."""
    path = folder / "gateway.toml"
    text = mqtt_config(broker.url, run='state_dir = "state"\n')
    path.write_text(text.replace('client_id = "gateway"\n', ""))
    return path


@needs_mosquitto
def test_the_session_follows_the_state_folder(broker: Broker, tmp_path: Path) -> None:
    """A daemon whose folder was moved gets what was sent while it did not run."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    records = [json.dumps(record) for record in pump_records(1, 9)["dev-0"]]
    with Running(write_config(first, broker)) as daemon, broker.client() as peer:
        daemon.wait_for_sources("mqtt")
        peer.publish("sensors/dev-0/data", *records[:4])
        wait_for(lambda: daemon.metric('stream_gru_samples_applied_total{source="mqtt"}') == 4)
        daemon.stop()
        own = stored_client_id(first / "state")
        assert f"subscribed to 1 topics ({own}-source-mqtt)" in daemon.text()
        peer.publish("sensors/dev-0/data", *records[4:])
    (first / "state").rename(second / "state")
    with Running(write_config(second, broker)) as daemon:
        wait_for(lambda: daemon.metric('stream_gru_samples_applied_total{source="mqtt"}') == 5)
        assert daemon.metric('stream_gru_source_sessions_lost_total{source="mqtt"}') == 0
        daemon.stop()
    assert stored_client_id(second / "state") == own


@needs_mosquitto
def test_a_second_client_makes_connections_rare_and_ends_nothing(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Mosquitto 2.0.11 gives no reason.  Once the other one has gone, the source is connected again."""
    with open_source(broker) as source:
        with open_source(broker) as other:
            wait_for(lambda: caplog.text.count(f"{RIVAL} 'daemon-source-mqtt'") == 2, what="both to notice")
            assert source.poll(1, 0.0) == other.poll(1, 0.0) == []
            before = source.health().reconnects
            lines = len(caplog.records)
            wait_for(lambda: source.health().reconnects >= before + 2)
            assert len(caplog.records) == lines
        wait_for(lambda: source.health().connected, what="the source to be connected again")
        with broker.client() as peer:
            peer.publish("sensors/p1/data", "1")
        assert message_numbers(receive(source, 1)) == [1]


@needs_mosquitto
def test_an_id_of_one_process_leaves_no_session(broker: Broker) -> None:
    """Without a state folder nobody would return to it, and a broker of MQTT 3.1.1 would keep messages for ever."""
    with open_source(broker, client_id="", protocol="3.1.1") as source:
        made = source.connection.client_id
    with open_source(broker, client_id="chosen", protocol="3.1.1"):
        pass
    broker.stop()
    stored = broker._store.read_bytes()
    assert b"chosen-source-mqtt" in stored
    assert made.encode() not in stored


def scripted_settings(broker: ScriptedBroker, protocol: str = "5") -> BrokerConfig:
    """The address of a scripted broker."""
    return BrokerConfig(url=broker.url, client_id="daemon", protocol=protocol, reconnect_max_delay_s=0.2)  # type: ignore[arg-type]


def take_over_three_times(broker: ScriptedBroker, client: MqttSource | MqttSink) -> None:
    """Another client takes over each of the first three connections."""
    for n in range(1, 4):
        wait_for(lambda: broker.connects == n and client.health().connected)  # noqa: B023
        broker.take_over()


def test_take_overs_end_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """After several 0x8E (session taken over) the source and the sink still connect, and the log has one line each."""
    with ScriptedBroker() as broker:
        source = MqttSource(source_table(), scripted_settings(broker), name="mqtt")
        source.open(None)
        take_over_three_times(broker, source)
        wait_for(lambda: broker.connects == 4 and source.health().connected)
        assert source.poll(1, 0.0) == []
        assert caplog.text.count(RIVAL) == 1
        source.close()
    with ScriptedBroker() as broker:
        sink = MqttSink(MqttSinkConfig(), scripted_settings(broker), name="mqtt")
        sink.open(None)
        take_over_three_times(broker, sink)
        wait_for(lambda: broker.connects == 4 and sink.idle)
        assert not sink.flush().unacked
        assert caplog.text.count(RIVAL) == 2
        sink.close()


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_topic_that_is_not_utf8_is_one_rejected_message(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    """It has one reason, is acknowledged like all others, and is logged once without a traceback."""
    with ScriptedBroker() as broker, caplog.at_level(logging.INFO):
        source = MqttSource(source_table(), scripted_settings(broker, protocol), name="mqtt")
        source.open(None)
        wait_for(lambda: broker.subscribed == 1 and source.health().connected)
        for mid in (1, 2, 3):
            broker.publish(b"sensors/\xff\xfe/data", b"%d" % mid, mid)
        broker.publish(b"sensors/p1/data", b"4", 4)
        got = receive(source, 4)
        assert [message.fault for message in got] == [DropReason.ENCODING] * 3 + [None]
        assert got[-1].position is not None
        source.commit(got[-1].position)
        wait_for(lambda: broker.acknowledged == [1, 2, 3, 4])
        assert broker.connects == 1
        source.close()
    assert "Traceback" not in caplog.text
    assert caplog.text.count(r"topic 'sensors/\\xff\\xfe/data': expected UTF-8, got other bytes") == 1


def test_properties_that_paho_cannot_read_close_no_connection() -> None:
    """Mosquitto passes on U+FEFF in a user property: with QoS 1 it would come again on each connection."""
    with ScriptedBroker() as broker:
        source = MqttSource(source_table(), scripted_settings(broker), name="mqtt")
        source.open(None)
        wait_for(lambda: broker.subscribed == 1 and source.health().connected)
        for mid, name in enumerate(("good", "\ufeff", "\ufeff" * 100), start=1):
            text = name.encode()
            user_property = b"\x26" + len(text).to_bytes(2, "big") + text + b"\0\1v"
            broker.publish(b"sensors/p1/data", b"%d" % mid, mid, user_property)
        assert message_numbers(receive(source, 3)) == [1, 2, 3]
        assert broker.connects == 1
        source.close()


def test_a_sink_ignores_a_topic_that_is_not_utf8(caplog: pytest.LogCaptureFixture) -> None:
    """It asks for its own statuses only; what is none of them is acknowledged."""
    with ScriptedBroker() as broker:
        sink = MqttSink(MqttSinkConfig(), scripted_settings(broker), name="mqtt")
        sink.open(None)
        wait_for(lambda: broker.subscribed == 1 and sink.health().connected)
        broker.publish(b"stream_gru/\xff/availability", b"online", 7)
        wait_for(lambda: broker.acknowledged == [7])
        sink.close()
    assert not [record for record in caplog.records if record.exc_info]
