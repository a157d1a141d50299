"""Availability: the status of the daemon and of each stream over reconnects, clean stops and kills."""

from __future__ import annotations

import pytest

from tests.faults.test_mqtt_sink import commit_answered, open_sink, second_outputs
from tests.support.brokers import Broker
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]


def availability(broker: Broker) -> dict[str, bytes]:
    """The retained stream statuses a new subscriber receives: the broker sends them before the SUBACK."""
    with broker.client() as peer:
        peer.subscribe("stream_gru/#")
        peer.publish("stream_gru/end", "")
        wait_for(lambda: peer.payloads("stream_gru/end"))
        topics = [message.topic for message in peer.heard]
        return {
            topic.removeprefix("stream_gru/").removesuffix("/availability"): peer.payloads(topic)[-1]
            for topic in topics
            if topic.endswith("/availability")
        }


def test_the_status_is_there_after_each_reconnect_and_after_the_end(broker: Broker) -> None:
    """Online, retained, while connected; offline after a clean stop; a stream's status says when it was last seen."""
    with open_sink(broker) as sink:
        sink.write(second_outputs(1))
        wait_for(lambda: commit_answered(sink))
        sink.stream_status("p1", False)
        broker.kill()
        broker.forget()
        broker.start()
        with broker.client() as peer:
            peer.subscribe("stream_gru/#")
            wait_for(lambda: peer.payloads("stream_gru/status") == [b"online"])
            wait_for(lambda: peer.payloads("stream_gru/p1/availability") == [b"offline"])
            sink.write(second_outputs(1, 5))
            wait_for(lambda: peer.payloads("stream_gru/p1/availability") == [b"offline", b"online"])
    with broker.client() as peer:
        peer.subscribe("stream_gru/#")
        wait_for(lambda: peer.payloads("stream_gru/status") == [b"offline"])
        assert all(message.retain for message in peer.heard)


def test_the_last_will_speaks_for_a_killed_daemon(broker: Broker) -> None:
    """After a kill the broker publishes offline (in MQTT 3.1.1 at once, otherwise after ten seconds)."""
    with broker.client() as peer, open_sink(broker, protocol="3.1.1") as sink:
        peer.subscribe("stream_gru/status")
        wait_for(lambda: peer.payloads() == [b"online"])
        sink.connection._disconnect = lambda: None  # type: ignore[method-assign]
        sink.connection.close()
        wait_for(lambda: peer.payloads() == [b"online", b"offline"])


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_all_streams_are_offline_after_a_clean_end(broker: Broker, protocol: str) -> None:
    """Also more streams than the broker's receive maximum; a stream without outputs has no status."""
    names = tuple(f"site/p{n}" for n in range(150))
    with open_sink(broker, protocol=protocol) as sink:
        sink.stream_status("unknown", False)
        sink.write(second_outputs(150, streams=names))
        wait_for(lambda: commit_answered(sink))
        wait_for(lambda: sink.idle)
        assert availability(broker) == dict.fromkeys(names, b"online")
        sink.close()
        assert availability(broker) == dict.fromkeys(names, b"offline")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_streams_of_a_killed_daemon_are_set_offline(broker: Broker, protocol: str) -> None:
    """Streams that a killed daemon left online are set offline at the next start, and online at their first output."""
    with open_sink(broker, protocol=protocol) as sink:
        sink.write(second_outputs(3, streams=("p1", "site/hall/p2", "p3")))
        wait_for(lambda: sink.idle)
        sink.connection._disconnect = lambda: None  # type: ignore[method-assign]
        sink.connection.close()
    assert availability(broker) == dict.fromkeys(("p1", "site/hall/p2", "p3"), b"online")
    with open_sink(broker, protocol=protocol) as sink:
        sink.write(second_outputs(1, streams=("p3",)))
        wait_for(lambda: availability(broker) == {"p1": b"offline", "site/hall/p2": b"offline", "p3": b"online"})
        sink.write(second_outputs(1, streams=("p1",)))
        wait_for(lambda: availability(broker)["p1"] == b"online")
        wait_for(lambda: sink._stale.done, what="the subscription to be dropped")
        with broker.client() as peer:
            peer.publish("stream_gru/p9/availability", "online", retain=True)
        wait_for(lambda: sink.idle)
    assert availability(broker)["p9"] == b"online"


def test_statuses_of_other_daemons_are_left_alone(broker: Broker) -> None:
    """A second daemon on the same broker changes neither the stream statuses nor the daemon status of the first."""
    keys = {"availability_topic": "stream_gru/{stream}", "status_topic": "stream_gru/first"}
    with open_sink(broker, keys, client_id="first") as first, broker.client() as peer:
        first.write(second_outputs(1, streams=("p1",)))
        wait_for(lambda: first.idle)
        peer.publish("stream_gru/p2", "online", retain=True)
        peer.subscribe("stream_gru/+")
        with open_sink(broker, {**keys, "status_topic": "stream_gru/second"}, client_id="second") as second:
            wait_for(lambda: second._stale._until, what="the subscription, and with it what is retained")
            wait_for(lambda: peer.payloads("stream_gru/p2") == [b"online", b"offline"])
            wait_for(lambda: second.idle)
            assert peer.payloads("stream_gru/p1") == [b"online"]
            assert peer.payloads("stream_gru/first") == [b"online"]
            assert peer.payloads("stream_gru/second") == [b"online"]


def test_without_availability_nothing_is_asked(broker: Broker) -> None:
    """An empty topic: no subscription, and no stream status at the end."""
    with broker.client() as peer:
        peer.subscribe("stream_gru/#")
        with open_sink(broker, {"availability_topic": ""}) as sink:
            assert sink._stale.done
            sink.write(second_outputs(1))
            wait_for(lambda: commit_answered(sink))
        wait_for(lambda: peer.payloads("stream_gru/status") == [b"online", b"offline"])
        assert {message.topic for message in peer.heard} == {"stream_gru/status", "stream_gru/p1/prediction"}
