"""The MQTT source and a broker that is down, returns, freezes, or loses the session."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stream_gru.connectors.sources.mqtt import MqttSource
from tests.faults.test_mqtt_source import (
    broker_settings,
    commit_message,
    crash,
    expect_nothing,
    message_numbers,
    open_source,
    receive,
    settle,
    source_table,
    texts,
)
from tests.support.brokers import Broker
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]


@pytest.mark.parametrize("end", [Broker.stop, Broker.kill], ids=["stop", "kill"])
def test_a_broker_that_comes_back_with_its_sessions(
    broker: Broker, end: Callable[[Broker], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost or applied twice: messages held here and redelivered by the broker are recognised as the same."""
    with caplog.at_level(logging.INFO), open_source(broker) as source:
        with broker.client() as peer:
            peer.publish("sensors/p1/data", *texts(20))
        got = receive(source, 20)
        commit_message(source, got[9])
        wait_for(lambda: broker._store.exists() and saved(broker))
        end(broker)
        wait_for(lambda: not source.health().connected)
        broker.start()
        wait_for(lambda: source.health().connected)
        with broker.client() as peer:
            peer.publish("sensors/p1/data", *texts(5, 20))
        more = receive(source, 5)
        assert message_numbers(more) == list(range(20, 25))
        commit_message(source, more[-1])
        assert source.health().reconnects == 1
        assert source.health().sessions_lost == 0
    lines = [record.message for record in caplog.records if "daemon" in record.message]
    assert ["connected (" in lines[0], "subscribed to 1 topics (daemon-source-mqtt)" in lines[1]] == [True, True]
    assert [" lost (" in lines[2], "connected again" in lines[-1]] == [True, True]
    assert len(lines) <= 5
    with open_source(broker) as source, broker.client() as peer:
        expect_nothing(source, peer)


def saved(broker: Broker) -> bool:
    """Whether the broker has had time to write its sessions: it does so every second after a change."""
    with broker.client() as peer:
        before = broker._store.stat().st_mtime_ns
        peer.publish("other", "x", retain=True)
        wait_for(lambda: broker._store.stat().st_mtime_ns != before)
    return True


def test_a_frozen_broker_is_left_and_found_again(broker: Broker) -> None:
    """A broker frozen longer than the keep-alive loses no message."""
    with open_source(broker, keepalive_s=1) as source:
        with broker.client() as peer:
            peer.publish("sensors/p1/data", *texts(10))
        got = receive(source, 10)
        broker.freeze()
        source.commit(got[4].position)
        wait_for(lambda: not source.health().connected, what="the source to notice")
        broker.thaw()
        wait_for(lambda: source.health().connected)
        with broker.client() as peer:
            peer.publish("sensors/p1/data", *texts(5, 10))
        more = receive(source, 5)
        assert message_numbers(more) == list(range(10, 15))
        commit_message(source, more[-1])
        assert source.health().sessions_lost == 0
    with open_source(broker) as source, broker.client() as peer:
        expect_nothing(source, peer)


def test_closing_does_not_wait_for_a_frozen_broker(broker: Broker) -> None:
    """Close returns at once."""
    with open_source(broker) as source:
        broker.freeze()
        thread = source.connection._thread
        source.close()
        assert not thread.is_alive()


def test_a_lost_session_is_counted_and_old_acknowledgements_stay_away(broker: Broker) -> None:
    """In a new session packet identifiers restart: an old acknowledgement must not match a new message."""
    with open_source(broker) as source:
        with broker.client() as peer:
            peer.publish("sensors/p1/data", *texts(5))
        old = receive(source, 5)
        broker.kill()
        broker.forget()
        broker.start()
        wait_for(lambda: source.health().sessions_lost == 1)
        wait_for(lambda: source.health().connected and not source._subscriptions._subscribing)
        with broker.client() as peer:
            peer.publish("sensors/p1/data", *texts(5, 100))
        assert message_numbers(receive(source, 5)) == list(range(100, 105))
        receipts = source.processed_packets(old[-1].position)
        assert (receipts.packets, receipts.new_session) == ({}, True)
        commit_message(source, old[-1])
        assert not source.processed_packets(old[-1].position).new_session
    with open_source(broker) as source:
        assert message_numbers(receive(source, 5)) == list(range(100, 105))


def test_a_late_acknowledgement_would_be_seen(broker: Broker) -> None:
    """The test above can fail: acknowledging by bare identifier loses messages."""
    with open_source(broker) as source:
        with broker.client() as peer:
            peer.publish("sensors/p1/data", *texts(3))
        receive(source, 3)
        source.connection.call_soon(lambda client: [client.ack(mid, 1) for mid in (1, 2, 3)])
        settle(source)
    with open_source(broker) as source, broker.client() as peer:
        expect_nothing(source, peer)


def test_a_session_lost_while_the_client_was_down_is_counted(broker: Broker, tmp_path: Path) -> None:
    """The subscriptions of a session are stored in a file: a missing session at the next start is a loss."""
    with open_source(broker, state_dir=str(tmp_path)) as source:
        assert source.health().sessions_lost == 0
        source.close()
    broker.kill()
    broker.forget()
    broker.start()
    with open_source(broker, state_dir=str(tmp_path)) as source, broker.client() as peer:
        assert source.health().sessions_lost == 1
        expect_nothing(source, peer)


def test_a_broker_that_is_restarted_is_no_second_daemon(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Where a connection attempt failed in between, the broker was down; no other client is suspected."""
    with open_source(broker) as source:
        for n in range(1, 7):
            broker.kill()
            wait_for(lambda: caplog.text.count("not connected (daemon-source-mqtt)") == n)  # noqa: B023
            broker.start()
            wait_for(lambda: source.health().reconnects == n and source.health().connected)  # noqa: B023
        assert source.connection.short_connections == 6
    assert "another client" not in caplog.text


def test_connected_means_subscribed(broker: Broker) -> None:
    """A message published once the source reports connected arrives; after a lost session too."""
    source = MqttSource(source_table(), broker_settings(broker), name="mqtt")
    answers: list[bool] = []
    subscribed = source._subscriptions.subscribed

    def watched(mid: int, refusals: Sequence[str]) -> None:
        answers.append(source.health().connected)
        subscribed(mid, refusals)
        answers.append(source.health().connected)

    handlers = dataclasses.replace(source.connection._handlers, subscribed=watched)
    source.connection._handlers = handlers
    source.open(None)
    for n in (1, 2):
        wait_for(lambda: source.health().connected)
        with broker.client() as peer:
            peer.publish("sensors/p1/data", str(n))
        assert message_numbers(receive(source, 1)) == [n]
        assert answers == [False, True] * n
        broker.kill()
        broker.forget()
        wait_for(lambda: not source.health().connected)
        broker.start()
    wait_for(lambda: source.health().connected)
    crash(source)


def test_a_broker_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    """Opening does not wait, and the source starts once the broker is up."""
    broker = Broker(tmp_path)
    source = MqttSource(source_table(), broker_settings(broker), name="mqtt")
    source.open(None)
    assert source.poll(1, 0.0) == []
    assert not source.health().connected
    with broker:
        wait_for(lambda: source.health().connected)
        source.close()
