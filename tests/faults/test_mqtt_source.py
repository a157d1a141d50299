"""The MQTT source against a real broker: received messages, acknowledgements, unusable messages."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.connectors.sources.mqtt import MqttSource, MqttSourceConfig
from stream_gru.core.types import DropReason, Position, RawMessage
from tests.support.brokers import Broker, Peer
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]


def broker_settings(broker: Broker, **keys: Any) -> BrokerConfig:
    """The broker's address, with short timeouts."""
    return BrokerConfig(
        **{"url": broker.url, "client_id": "daemon", "reconnect_max_delay_s": 0.5, "keepalive_s": 2, **keys}
    )


def source_table(**keys: Any) -> MqttSourceConfig:
    """A source of JSON."""
    return MqttSourceConfig(**{"topics": ["sensors/{stream}/data"], "format": "json", **keys})


@contextmanager
def open_source(
    broker: Broker,
    config: MqttSourceConfig | None = None,
    state_dir: str = "",
    stored: tuple[int, Mapping[int, bytes]] = (0, {}),
    **keys: Any,
) -> Iterator[Any]:
    """A source that is connected and subscribed; killed, as a process is, when the test leaves it open.

    ``stored``: the number of the last committed message, and its packets.
    """
    source = MqttSource(config or source_table(), broker_settings(broker, **keys), name="mqtt", state_dir=state_dir)
    source.resume(stored[1])
    source.open(Position("mqtt", stored[0]))
    try:
        wait_for(lambda: source.health().connected, what="the source to be connected")
        wait_for(lambda: not source._subscriptions._subscribing, what="its subscriptions")
        yield source
    finally:
        crash(source)


def crash(source: MqttSource) -> None:
    """Cut the connection as a killed process would: no acknowledgements, no DISCONNECT."""
    source.connection._disconnect = lambda: None  # type: ignore[method-assign]
    source.close()


def receive(source: MqttSource, count: int, timeout_s: float = 20.0) -> list[RawMessage]:
    """Exactly this many messages; no more are waiting."""
    got: list[RawMessage] = []

    def enough() -> bool:
        got.extend(source.poll(1000, 0.05))
        return len(got) >= count

    wait_for(enough, timeout_s, f"{count} messages")
    assert len(got) == count
    return got


def message_numbers(messages: list[RawMessage]) -> list[int]:
    """The values of the messages."""
    return [int(message.payload) for message in messages]


def texts(count: int, begin: int = 0) -> list[str]:
    """Payloads."""
    return [str(i) for i in range(begin, begin + count)]


def commit_message(source: MqttSource, message: RawMessage) -> None:
    """Acknowledge up to a message, and wait until the broker has the acknowledgement."""
    assert message.position is not None
    source.commit(message.position)
    settle(source)


def settle(source: MqttSource) -> None:
    """Wait until the broker has handled all acknowledgements, also of messages redelivered after a reconnect.

    It answers in order: after the first answer all redelivered messages are here, after the second one acknowledged.
    """
    connection = source.connection

    def asked_twice() -> bool:
        epoch = connection.epoch
        return answer(connection) and answer(connection) and connection.epoch == epoch

    wait_for(asked_twice, 30)


def answer(connection: Connection) -> bool:
    """Run all pending work of the connection's thread, then make a round trip to the broker."""
    answered = threading.Event()
    client = connection._client
    usual = client.on_unsubscribe

    def ask(client: Client) -> None:
        client.on_unsubscribe = lambda *_: answered.set()
        client.unsubscribe("no/such/filter")

    turned = threading.Event()
    connection.call_soon(lambda _: turned.set())
    assert turned.wait(20)
    connection.call_soon(ask)
    done = answered.wait(5)
    client.on_unsubscribe = usual
    return done


def expect_nothing(source: MqttSource, peer: Peer, topic: str = "sensors/p1/data") -> None:
    """No message is queued before one sent now."""
    peer.publish(topic, "999")
    assert message_numbers(receive(source, 1)) == [999]


def test_messages_come_in_order_with_stream_channel_and_position(broker: Broker) -> None:
    """Each message has its arrival time, stream, channel and position."""
    config = source_table(topics=["site/{area}/{device}/{channel}"])
    with open_source(broker, config) as source, broker.client() as peer:
        peer.publish("site/a/p1/flow", "1", "2")
        peer.publish("site/b/p2/temp", "3")
        got = receive(source, 3)
    assert message_numbers(got) == [1, 2, 3]
    assert [(message.key, message.channel) for message in got] == [("a/p1", "flow")] * 2 + [("b/p2", "temp")]
    assert [message.position for message in got] == [Position("mqtt", n) for n in (1, 2, 3)]
    assert all(message.arrival_ns > 1_600_000_000 * 10**9 and message.source == "mqtt" for message in got)


def test_the_bell_rings_for_each_message(broker: Broker) -> None:
    """The loop can sleep until a message arrives."""
    rung: list[int] = []
    source = MqttSource(source_table(), broker_settings(broker), name="mqtt", wakeup=lambda: rung.append(1))
    source.open(None)
    wait_for(lambda: source._subscriptions._granted)
    with broker.client() as peer:
        peer.publish("sensors/p1/data", "1", "2")
    wait_for(lambda: len(rung) == 2)
    source.close()
    source.close()


def test_what_was_not_committed_comes_again(broker: Broker) -> None:
    """A killed daemon that committed nothing gets everything again; one that committed gets the rest."""
    with broker.client() as peer:
        with open_source(broker) as source:
            peer.publish("sensors/p1/data", *texts(10))
            assert message_numbers(receive(source, 10)) == list(range(10))
        with open_source(broker) as source:
            got = receive(source, 10)
            assert message_numbers(got) == list(range(10))
            commit_message(source, got[6])
        with open_source(broker) as source:
            got = receive(source, 3)
            assert message_numbers(got) == [7, 8, 9]
            commit_message(source, got[-1])
        with open_source(broker) as source:
            expect_nothing(source, peer)


def test_the_broker_keeps_messages_while_no_client_is_connected(broker: Broker) -> None:
    """A clean stop leaves the session; messages published meanwhile are kept."""
    with broker.client() as peer:
        with open_source(broker) as source:
            source.close()
        peer.publish("sensors/p1/data", *texts(50))
        with open_source(broker) as source:
            assert message_numbers(receive(source, 50)) == list(range(50))


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_what_was_committed_but_not_acknowledged_is_not_taken_twice(broker: Broker, protocol: str) -> None:
    """Killed between the transaction and the acknowledgement: the next process recognises the packets, acknowledges and
    counts them, and continues the numbering.
    """
    with broker.client() as peer:
        with open_source(broker, protocol=protocol) as source:
            peer.publish("sensors/p1/data", *texts(10))
            got = receive(source, 10)
            receipts = source.processed_packets(got[6].position)
            assert (len(receipts.packets), receipts.new_session) == (7, True)
        with open_source(broker, stored=(7, receipts.packets), protocol=protocol) as source:
            got = receive(source, 3)
            assert message_numbers(got) == [7, 8, 9]
            assert [message.position for message in got] == [Position("mqtt", n) for n in (8, 9, 10)]
            assert source.health().redelivered == 7
            receipts = source.processed_packets(got[-1].position)
            assert (len(receipts.packets), receipts.new_session) == (3, False)
            commit_message(source, got[-1])
            assert not source.processed_packets(got[-1].position).packets
        with open_source(broker, protocol=protocol) as source:
            expect_nothing(source, peer)


def test_without_the_packets_it_would_be(broker: Broker) -> None:
    """The test above can fail: a process without the stored packets applies everything again."""
    with broker.client() as peer:
        with open_source(broker) as source:
            peer.publish("sensors/p1/data", *texts(10))
            receive(source, 10)
        with open_source(broker, stored=(7, {})) as source:
            assert message_numbers(receive(source, 10)) == list(range(10))
            assert source.health().redelivered == 0


def test_mqtt_3_1_1_has_the_same_promise(broker: Broker) -> None:
    """MQTT 3.1.1 keeps the session and the acknowledgements too."""
    with broker.client() as peer:
        with open_source(broker, protocol="3.1.1") as source:
            assert source.max_inflight == 20
            peer.publish("sensors/p1/data", *texts(5))
            commit_message(source, receive(source, 5)[1])
        with open_source(broker, protocol="3.1.1") as source:
            assert message_numbers(receive(source, 3)) == [2, 3, 4]


def test_faults_are_handed_on_and_acknowledged(broker: Broker) -> None:
    """An unusable message is a fault with a position, so it is counted once and not redelivered."""
    with broker.client() as peer:
        peer.publish("sensors/p0/data", "old", retain=True)
        config = source_table(topics=["sensors/{stream}/data", "others/x"], max_payload_bytes=100)
        with open_source(broker, config) as source:
            assert receive(source, 1)[0].fault is DropReason.RETAINED
            peer.publish("sensors/p1/data", "x" * 5000)
            peer.publish("sensors/p1/data", "1")
            got = receive(source, 2)
            assert [message.fault for message in got] == [DropReason.TOO_LARGE, None]
            assert (got[0].payload, got[0].topic) == (b"x" * 4096, "sensors/p1/data")
            narrower = source_table(topics=["others/x"], max_payload_bytes=100)
            source._patterns = MqttSource(narrower, broker_settings(broker), name="n")._patterns
            peer.publish("sensors/p1/data", "2")
            last = receive(source, 1)[0]
            assert last.fault is DropReason.UNKNOWN_STREAM
            commit_message(source, last)
        with open_source(broker, config) as source:
            expect_nothing(source, peer)


def test_retained_messages_can_be_wanted(broker: Broker) -> None:
    """With accept_retained = true they are samples like others, once per new subscription."""
    with broker.client() as peer:
        peer.publish("sensors/p0/data", "5", retain=True)
        config = source_table(accept_retained=True)
        with open_source(broker, config) as source:
            got = receive(source, 1)
            assert (message_numbers(got), got[0].fault) == ([5], None)
            commit_message(source, got[0])
        with open_source(broker, config) as source:
            expect_nothing(source, peer)


def test_messages_without_acknowledgement_are_counted(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """QoS 0 has no guarantee; this is logged once and counted."""
    with open_source(broker) as source, broker.client() as peer:
        peer.publish("sensors/p1/data", *texts(3), qos=0)
        got = receive(source, 3)
        commit_message(source, got[-1])
        assert source.health().qos0_messages == 3
    assert sum("QoS 0" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("stall_s", [0.0, 2.5])
def test_a_full_queue_makes_the_broker_wait(broker: Broker, stall_s: float) -> None:
    """Nothing is lost, duplicated or reordered when the loop falls behind, even for longer than the keep-alive."""
    config = source_table(queue_size=10, queue_bytes=100_000)
    with open_source(broker, config, keepalive_s=1, receive_maximum=50) as source:
        with broker.client() as peer:
            peer.publish("sensors/p1/data", *texts(400))
        wait_for(lambda: source.health().queued >= 10)
        end = time.monotonic() + stall_s
        wait_for(lambda: time.monotonic() >= end)
        assert source.health().queued <= 11
        got: list[RawMessage] = []
        while len(got) < 400:
            more = source.poll(7, 5.0)
            assert more
            got += more
            source.commit(more[-1].position)
        assert message_numbers(got) == list(range(400))
        settle(source)
    with open_source(broker) as source, broker.client() as peer:
        expect_nothing(source, peer)


def test_other_topics_on_the_same_connection(broker: Broker) -> None:
    """A reload subscribes to new topics and unsubscribes from removed ones; other keys need another source."""
    with open_source(broker) as source, broker.client() as peer:
        assert source.update(source_table(topics=["rooms/{stream}/data"]))
        wait_for(lambda: source._subscriptions._granted == {"rooms/+/data"})
        peer.publish("sensors/p1/data", "1")
        peer.publish("rooms/r1/data", "2")
        assert [message.key for message in receive(source, 1)] == ["r1"]
        assert source.health().reconnects == 0
        assert not source.update(source_table(topics=["rooms/{stream}/data"], qos=0))


def test_an_obsolete_subscription_is_dropped(broker: Broker, tmp_path: Path) -> None:
    """The session keeps filters of an earlier configuration; the file beside it lists them."""
    with open_source(broker, source_table(topics=["sensors/{stream}/data", "rooms/x"]), str(tmp_path)) as source:
        wait_for((tmp_path / "mqtt-daemon-source-mqtt.json").exists)
        source.close()
    with open_source(broker, source_table(), str(tmp_path)) as source, broker.client() as peer:
        wait_for(lambda: source._subscriptions._granted == {"sensors/+/data"})
        peer.publish("rooms/x", "1")
        expect_nothing(source, peer)


def test_a_file_of_subscriptions_that_is_damaged_only_warns(
    broker: Broker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every start subscribes to everything, so the file is not essential."""
    (tmp_path / "mqtt-daemon-source-mqtt.json").write_text("[")
    with open_source(broker, state_dir=str(tmp_path)) as source, broker.client() as peer:
        expect_nothing(source, peer)
        assert "cannot be read" in caplog.text
        source._subscriptions._path = tmp_path / "gone" / "x.json"
        source._subscriptions._save()
        assert "cannot be written" in caplog.text


def test_a_refused_subscription_is_logged(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """The broker's reason is logged, the source does not count as connected, and it retries on the next connection."""
    with open_source(broker) as source:
        source._subscriptions._granted.clear()
        source._subscriptions._subscribing[7] = ("sensors/+/data",)
        source._subscriptions.subscribed(7, ["Not authorized"])
        assert "refused the subscription to sensors/+/data: Not authorized" in caplog.text
        assert not source._subscriptions._granted
        assert not source.health().connected


@pytest.mark.parametrize("sent", [0, 1])
def test_a_minute_without_messages_is_logged_once(broker: Broker, caplog: pytest.LogCaptureFixture, sent: int) -> None:
    """A broker may grant a subscription and withhold its messages; once a message has arrived, nothing is logged."""
    now = [100.0]
    source = MqttSource(source_table(), broker_settings(broker), name="mqtt", clock=lambda: now[0])
    source.open(None)
    try:
        wait_for(lambda: source.health().connected and source._granted_s > 0, what="the source to be subscribed")
        with broker.client() as peer:
            peer.publish("sensors/a/data", *(["{}"] * sent))
        receive(source, sent)
        for now[0] in (159.9, 160.0, 300.0):
            source._on_idle(source.connection._client)
    finally:
        source.close()
    assert caplog.text.count("no message within") == 1 - sent


def test_a_topic_that_is_not_text_is_a_fault(broker: Broker) -> None:
    """Brokers should not forward it; if one does, the message is counted and acknowledged."""
    source = MqttSource(source_table(), broker_settings(broker), name="mqtt")
    message = MQTTMessage(1, b"sensors/\xff/data")
    message.qos, message.payload = 1, b"1"
    source._on_message(message)
    (raw,) = source._queue.get(1, 0.0)
    assert raw.fault is DropReason.ENCODING
    source.commit(Position("mqtt", 1))
    assert source._acks.pending_acks() == [1]


def test_what_the_broker_lets_through_can_be_read(tmp_path: Path) -> None:
    """The broker's limits are known after the connection."""
    lines = ["max_inflight_messages 7", "retain_available false"]
    with Broker(tmp_path, max_packet_bytes=5000, lines=lines) as broker, open_source(broker) as source:
        limits = source.connection.limits
        assert (limits.max_packet_bytes, limits.receive_maximum, limits.retain) == (5000, 7, False)
        assert source.max_inflight == 10_000


def test_an_error_in_a_handler_does_not_end_the_connection(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected exception is logged and the next message is received."""
    with open_source(broker) as source, broker.client() as peer:
        good = source._raw
        source._raw = lambda *arguments: 1 / 0
        peer.publish("sensors/p1/data", "1")
        wait_for(lambda: "unexpected error" in caplog.text)
        source._raw = good
        expect_nothing(source, peer)
        assert source.health().connected
