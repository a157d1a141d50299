"""The MQTT sink with a store: when rows are published, what survives a kill, what a successor receives."""

from __future__ import annotations

import pytest

from stream_gru.connectors.sinks.mqtt import MqttSink
from stream_gru.core.commit_records import FlushResult, SinkCheckpoint
from tests.faults.test_mqtt_sink import open_sink, second_outputs, seconds, wait_for_rows
from tests.support.brokers import Broker
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]


def kill_sink(sink: MqttSink) -> None:
    """Cut the connection as a killed process would, without DISCONNECT."""
    sink.connection._disconnect = lambda: None  # type: ignore[method-assign]
    sink.connection.close()


def test_rows_wait_for_their_commit_and_survive_a_kill(broker: Broker) -> None:
    """Nothing is published before it is stored; rows stored and not acknowledged are published by the next process,
    first and with their old ids; acknowledged ones are reported.
    """
    with broker.client() as peer:
        peer.subscribe("stream_gru/+/prediction")
        with open_sink(broker, kept=SinkCheckpoint()) as sink:
            sink.write(second_outputs(30))
            sink.flush()
            sink.committed()
            wait_for(lambda: not sink.health().queued)
            broker.freeze()
            sink.write(second_outputs(30, 30))
            second = sink.flush()
            assert list(second.acked) == list(range(1, 31))
            sink.committed()
            sink.write(second_outputs(5, 70))
            wait_for(lambda: sink._publisher.in_flight)
            kill_sink(sink)
            broker.thaw()
        with open_sink(broker, kept=SinkCheckpoint(unacked=second.unacked, last_number=60)) as sink:
            sink.write(second_outputs(5, 60))
            wait_for(lambda: sink.health().queued == 5)
            result = sink.flush()
            assert list(result.acked) == list(range(31, 61))
            assert [row.number for row in result.unacked] == list(range(61, 66))
            assert max(seconds(peer)) < 60
            sink.committed()
            wait_for_rows(peer, 65)
        assert len({str(message.properties.UserProperty) for message in peer.heard}) == 65  # type: ignore[union-attr]


def test_immediate_rows_do_not_wait_for_a_commit(broker: Broker) -> None:
    """Rows acknowledged before the commit are not stored at all."""
    with broker.client() as peer, open_sink(broker, kept=SinkCheckpoint(), immediate=True) as sink:
        peer.subscribe("stream_gru/+/prediction")
        sink.write(second_outputs(10))
        wait_for(lambda: seconds(peer) == list(range(10)))
        wait_for(lambda: not sink.health().queued)
        assert sink.flush() == FlushResult(unacked=[], acked=())


def test_a_successor_publishes_remaining_rows_on_their_topics(broker: Broker) -> None:
    """On the old topics, under the old numbers, before its own rows; rows not yet stored are stored first."""
    with broker.client() as peer, open_sink(broker, {"topic": "old/{stream}"}, SinkCheckpoint(), keepalive_s=1) as old:
        peer.subscribe("old/+")
        peer.subscribe("new/+")
        broker.freeze()
        old.write(second_outputs(2))
        old.flush()
        old.committed()
        old.write(second_outputs(2, 2))
        old.close()
        left = old.handoff()
        assert len(left.rows) == 4
        broker.thaw()
        with open_sink(broker, {"topic": "new/{stream}"}, client_id="heir") as heir:
            heir.adopt(left)
            heir.connection.wake()
            heir.write(second_outputs(1, 4))
            wait_for(lambda: heir.health().queued == 3)
            assert [(row.number, row.topic) for row in heir.flush().unacked] == [
                (3, "old/p1"), (4, "old/p1"), (5, "new/p1")
            ]  # fmt: skip
            heir.committed()
            wait_for_rows(peer, 5)
            wait_for(lambda: [message.topic for message in peer.heard][-1:] == ["new/p1"])


def test_the_last_flush_comes_after_the_end(broker: Broker) -> None:
    """Rows acknowledged during close are reported to the last commit, so they are not resent."""
    with open_sink(broker, kept=SinkCheckpoint()) as sink:
        sink.write(second_outputs(20))
        sink.flush()
        sink.committed()
        sink.close()
        assert list(sink.flush().acked) == list(range(1, 21))
        sink.committed()
        assert sink.flush() == FlushResult(unacked=[], acked=())
