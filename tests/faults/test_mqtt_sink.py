"""The MQTT sink against a real broker that dies, freezes, refuses and limits the packet size."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.paho_client import PahoClient
from stream_gru.connectors.sinks.mqtt import MqttSink, MqttSinkConfig
from stream_gru.core.commit_records import FlushResult, OutboxRow, SinkCheckpoint
from stream_gru.core.errors import SinkUnavailable, StateError
from stream_gru.core.types import PredictionBatch
from tests.support.batches import batch
from tests.support.brokers import Broker, Peer
from tests.support.models import make_bundle
from tests.support.pipelines import toy_pipeline
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]


@contextmanager
def open_sink(
    broker: Broker, keys: dict[str, Any] | None = None, kept: SinkCheckpoint | None = None, **options: Any
) -> Iterator[MqttSink]:
    """A connected sink; ``keys`` of its table, ``options`` of its constructor or of the broker's table; what a store
    has ``kept`` for it.
    """
    own = {key: options.pop(key) for key in ("immediate",) if key in options}
    reach = BrokerConfig(
        **{"url": broker.url, "client_id": "daemon", "reconnect_max_delay_s": 0.5, "keepalive_s": 2, **options}
    )
    sink = MqttSink(MqttSinkConfig(**(keys or {})), reach, name="mqtt", **own)
    sink.open(kept)
    try:
        wait_for(lambda: sink.health().connected, what="the sink to be connected")
        yield sink
    finally:
        sink.close()


def second_outputs(rows: int, begin: int = 0, streams: tuple[str, ...] = ("p1",)) -> PredictionBatch:
    """A number of outputs, one a second, of these streams in turn."""
    names = [streams[i % len(streams)] for i in range(rows)]
    return toy_pipeline().process(batch(names, list(range(begin, begin + rows))))


def commit_answered(sink: MqttSink) -> bool:
    """Commit; return whether all rows are acknowledged."""
    sink.flush()
    sink.committed()
    return not sink.health().queued


def wait_for_rows(peer: Peer, rows: int) -> None:
    """Wait until all these rows are delivered.  After a freeze Mosquitto 2.0.11 may hold back the last ones until there
    is other traffic on the connection.
    """

    def all_of_them() -> bool:
        peer.publish("test/nudge", "")
        return set(seconds(peer)) == set(range(rows))

    wait_for(all_of_them)


def seconds(peer: Peer, topic: str = "") -> list[int]:
    """The times of the received rows, in order."""
    rows = [json.loads(payload) for payload in peer.payloads(topic) if payload.startswith(b"{")]
    return [int(row["time"][17:19]) + 60 * int(row["time"][14:16]) for row in rows]


def test_each_row_is_one_message_of_its_stream(broker: Broker) -> None:
    """Topic, JSON, content type and an id by which a consumer can drop duplicates."""
    with broker.client() as peer, open_sink(broker, {"message_expiry_s": 60}) as sink:
        peer.subscribe("stream_gru/+/prediction")
        sink.write(second_outputs(4, streams=("p1", "p2")))
        wait_for(lambda: commit_answered(sink))
        wait_for(lambda: len(peer.heard) == 4)
        first = peer.heard[0]
        assert first.topic == "stream_gru/p1/prediction"
        row = json.loads(first.payload)
        assert row["stream"] == "p1"
        properties: Any = first.properties
        assert properties.ContentType == "application/json"
        assert properties.PayloadFormatIndicator == 1
        assert properties.MessageExpiryInterval in (59, 60)
        assert properties.UserProperty == [("id", f"p1/{row['time']}")]
        assert not first.retain
        assert sink.health().queued == 0


@pytest.mark.parametrize("keys", [{"qos": 0}, {"qos": 1}])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_many_rows_arrive_once_in_order(broker: Broker, keys: dict[str, Any], protocol: str) -> None:
    """More rows than the broker's receive maximum, at either QoS and protocol version."""
    with broker.client() as peer, open_sink(broker, keys, protocol=protocol) as sink:
        peer.subscribe("stream_gru/+/prediction")
        sink.write(second_outputs(300))
        wait_for(lambda: commit_answered(sink))
        wait_for(lambda: len(peer.heard) == 300)
        assert seconds(peer) == list(range(300))


def test_rows_written_while_the_broker_is_down_are_sent_later(broker: Broker) -> None:
    """Nothing is lost and nothing resent needlessly; meanwhile the rows are queued."""
    with open_sink(broker) as sink:
        broker.stop()
        wait_for(lambda: not sink.health().connected)
        sink.write(second_outputs(50))
        assert not commit_answered(sink)
        assert sink.health().queued == 50
        broker.start()
        with broker.client() as peer:
            # The sink may connect first: rows sent before the subscription would be lost, so check at the sink.
            wait_for(lambda: commit_answered(sink))
            peer.subscribe("stream_gru/+/prediction")
            sink.write(second_outputs(10, 50))
            wait_for(lambda: len(peer.heard) == 10)
        assert sink.health().reconnects == 1


def test_a_frozen_broker_loses_no_row(broker: Broker) -> None:
    """Rows in flight when the broker freezes are resent on the next connection, in order."""
    with broker.client() as peer, open_sink(broker, keepalive_s=1) as sink:
        peer.subscribe("stream_gru/+/prediction")
        sink.write(second_outputs(5))
        wait_for(lambda: commit_answered(sink))
        broker.freeze()
        sink.write(second_outputs(60, 5))
        wait_for(lambda: not sink.health().connected, what="the sink to notice")
        assert not commit_answered(sink)
        broker.thaw()
        wait_for(lambda: commit_answered(sink))
        wait_for_rows(peer, 65)
        heard = seconds(peer)
        assert list(dict.fromkeys(heard)) == list(range(65))
        # Rows in flight were delivered twice: the broker had received them, but its acknowledgement was lost.
        assert len(heard) <= 65 + 20


def test_a_full_queue_is_not_ready(broker: Broker) -> None:
    """With when_full = block no row is dropped and no call waits; a row written to a full queue is still accepted."""
    with broker.client() as peer, open_sink(broker, {"queue_size": 20}) as sink:
        peer.subscribe("stream_gru/+/prediction")
        broker.freeze()
        assert sink.ready()
        sink.write(second_outputs(50))
        assert not sink.ready()
        sink.write(second_outputs(50, 50))
        broker.thaw()
        wait_for(sink.ready)
        wait_for(lambda: commit_answered(sink))
        wait_for_rows(peer, 100)
        assert sink.health().dropped == 0


def test_a_full_queue_can_drop_the_oldest(broker: Broker) -> None:
    """With when_full = drop_oldest the loop continues, the newest rows stay, and dropped ones are counted."""
    keys = {"queue_size": 20, "when_full": "drop_oldest"}
    with open_sink(broker, keys) as sink:
        broker.stop()
        wait_for(lambda: not sink.health().connected)
        sink.write(second_outputs(100))
        assert (sink.health().queued, sink.health().dropped) == (20, 80)
        assert sink.ready()
        assert sink.flush().unacked[0].key.endswith("00:01:20Z")


def test_a_broker_that_never_was_up_blocks_nothing() -> None:
    """Also before the first connection."""
    config = MqttSinkConfig(queue_size=5, when_full="drop_oldest")
    sink = MqttSink(config, BrokerConfig(url="mqtt://127.0.0.1:9", reconnect_max_delay_s=0.5), name="mqtt")
    sink.open(None)
    sink.write(second_outputs(8))
    assert len(sink.flush().unacked) == 5
    assert (sink.health().queued, sink.health().dropped) == (5, 3)
    sink.close()


@pytest.mark.parametrize("end", [Broker.freeze, Broker.stop], ids=["frozen", "stopped"])
def test_closing_ends_the_thread_whatever_the_broker_does(broker: Broker, end: Callable[[Broker], None]) -> None:
    """The queue is full, the broker is frozen: the thread has ended when close returns."""
    with open_sink(broker, {"queue_size": 500, "when_full": "drop_oldest"}) as sink:
        end(broker)
        sink.write(second_outputs(1000, streams=tuple(f"p{n}" for n in range(50))))
        thread = sink.connection._thread
        sink.close()
        assert thread is not None
        assert not thread.is_alive()


def test_too_long_a_row_is_refused_once_and_the_rest_is_sent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A row so long that the broker would disconnect is not sent; later rows are."""
    with Broker(tmp_path, max_packet_bytes=2000) as broker, broker.client() as peer:
        peer.subscribe("stream_gru/#")
        with open_sink(broker, {"topic": "stream_gru/{stream}/" + "x" * 100}) as sink:
            sink.write(second_outputs(1))
            long = toy_pipeline(make_bundle(horizon=200)).process(batch(["p2"], [0]))
            sink.write(long)
            sink.write(second_outputs(1, 1))
            wait_for(lambda: commit_answered(sink))
            wait_for(lambda: len([payload for payload in peer.payloads() if payload.startswith(b"{")]) == 2)
            assert sink.health().failed == 1
            assert sink.health().reconnects == 0
            assert sink.connection.limits.max_packet_bytes == 2000
    assert "accepts 2000 bytes at most" in caplog.text


def test_a_row_that_always_ends_the_connection_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broker of MQTT 3.1.1 does not announce its size limit: the row is identified and counted, the rest arrives."""
    with Broker(tmp_path, max_packet_bytes=2000) as broker, broker.client() as peer:
        peer.subscribe("stream_gru/+/prediction")
        with open_sink(broker, protocol="3.1.1") as sink:
            long_among_short(sink)
            wait_for(lambda: commit_answered(sink))
            wait_for(lambda: set(seconds(peer)) == set(range(60)))
            assert list(dict.fromkeys(seconds(peer))) == list(range(60))
            assert sink.health().failed == 1
            assert sink.health().reconnects <= 6
    assert "dropped" in caplog.text


def long_among_short(sink: MqttSink) -> None:
    """30 rows, one that is much longer, and 30 more."""
    sink.write(second_outputs(30))
    sink.write(toy_pipeline(make_bundle(horizon=200)).process(batch(["p2"], [0])))
    sink.write(second_outputs(30, 30))


def test_a_row_that_the_broker_answers_as_too_large_is_refused_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Paho does not know this reason code: the row is counted and logged once, the rest arrive once over one
    connection.
    """
    with Broker(tmp_path, lines=["message_size_limit 1000"]) as broker, broker.client() as peer:
        peer.subscribe("stream_gru/+/prediction")
        with open_sink(broker) as sink:
            long_among_short(sink)
            wait_for(lambda: commit_answered(sink))
            wait_for(lambda: len(peer.heard) >= 60)
            assert seconds(peer) == list(range(60))
            assert (sink.health().failed, sink.health().reconnects) == (1, 0)
    assert caplog.text.count("refused an output to stream_gru/p2/prediction: Packet too large") == 1


def test_a_row_with_an_unusable_answer_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where paho disconnects at an answer, repeatedly, the row is identified as if the broker had disconnected."""
    monkeypatch.delattr(PahoClient, "_handle_pubackcomp")
    with Broker(tmp_path, lines=["message_size_limit 1000"]) as broker, broker.client() as peer:
        peer.subscribe("stream_gru/+/prediction")
        with open_sink(broker) as sink:
            long_among_short(sink)
            wait_for(lambda: commit_answered(sink))
            wait_for(lambda: set(seconds(peer)) == set(range(60)))
            assert list(dict.fromkeys(seconds(peer))) == list(range(60))
            assert sink.health().failed == 1
            assert sink.health().reconnects <= 6
    assert "Protocol error" in caplog.text
    assert "dropped" in caplog.text


def test_a_notice_that_ends_the_connection_is_not_repeated(tmp_path: Path) -> None:
    """Some brokers disconnect for a topic that is not ours; outputs continue without the notice."""
    acl = ["topic read #", "topic write stream_gru/+/prediction", "topic write stream_gru/status"]
    with Broker(tmp_path, acl=acl, lines=["max_queued_messages 0"]) as broker, broker.client() as peer:
        peer.subscribe("stream_gru/+/prediction")
        with open_sink(broker) as sink:
            sink.write(second_outputs(10))
            wait_for(lambda: commit_answered(sink))
            wait_for(lambda: seconds(peer) == list(range(10)))
            assert sink.health().failed == 0


def test_rows_in_flight_to_a_broker_with_a_smaller_limit(tmp_path: Path) -> None:
    """A row beyond the smaller limit of a restarted broker is not sent."""
    roomy, narrow = tmp_path / "a", tmp_path / "b"
    roomy.mkdir()
    narrow.mkdir()
    with Broker(roomy) as first, Broker(narrow, max_packet_bytes=1000) as second:
        second.stop()
        with open_sink(first, keepalive_s=1) as sink:
            first.freeze()
            sink.write(toy_pipeline(make_bundle(horizon=200)).process(batch(["p2"], [0])))
            wait_for(lambda: sink._publisher.in_flight)
            second._config.write_text(second._config.read_text().replace(str(second.port), str(first.port)))
            second.port = first.port
            first.kill()
            second.start()
            wait_for(lambda: commit_answered(sink))
            assert sink.health().failed == 1
            assert sink.health().reconnects == 1


def test_a_refused_topic_is_counted_and_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal (access list) is final: counted, logged once, and not counted as a success."""
    acl = ["topic read #", "topic write stream_gru/p1/#", "topic write stream_gru/status"]
    with Broker(tmp_path, acl=acl) as broker, broker.client() as peer, open_sink(broker) as sink:
        peer.subscribe("stream_gru/#")
        sink.write(second_outputs(10, streams=("p1", "p2")))
        wait_for(lambda: commit_answered(sink))
        assert sink.health().failed == 5
        wait_for(lambda: len(peer.payloads("stream_gru/p1/prediction")) == 5)
    assert caplog.text.count("refused an output to stream_gru/p2/prediction") == 1


def test_a_broker_that_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without retained messages outputs still arrive; then the last will is not retained either."""
    with Broker(tmp_path, lines=["retain_available false"]) as broker, broker.client() as peer:
        peer.subscribe("stream_gru/#")
        with open_sink(broker, {"retain": True}) as sink:
            sink.write(second_outputs(3))
            wait_for(lambda: commit_answered(sink))
            wait_for(lambda: seconds(peer) == [0, 1, 2])
        wait_for(lambda: peer.payloads("stream_gru/status") == [b"online", b"offline"])
    assert "keeps no retained messages" in caplog.text


def test_closing_waits_for_what_is_left_but_not_for_ever(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Rows written just before the end are delivered; with a frozen broker closing has a time limit."""
    with broker.client() as peer:
        peer.subscribe("stream_gru/+/prediction")
        with open_sink(broker) as sink:
            sink.write(second_outputs(200))
        wait_for(lambda: len(peer.heard) == 200)
    with open_sink(broker) as sink:
        broker.freeze()
        sink.write(second_outputs(3))
        thread = sink.connection._thread
        sink.close()
        assert thread is not None
        assert not thread.is_alive()
        broker.thaw()
    assert "3 outputs were not acknowledged" in caplog.text


def test_writing_to_a_sink_that_is_not_open_is_an_error() -> None:
    """Writing needs open; flushing and closing without open do nothing, and the constructor has no side effects."""
    sink = MqttSink(MqttSinkConfig(), BrokerConfig(url="mqtt://127.0.0.1:1"), name="mqtt")
    with pytest.raises(SinkUnavailable, match="not open"):
        sink.write(second_outputs(1))
    assert sink.flush() == FlushResult(unacked=[], acked=())
    sink.close()
    with pytest.raises(StateError, match="expected stored outputs for a broker"):
        sink.open(SinkCheckpoint(unacked=[OutboxRow("", b"pump flow=1 1", "", 1)], last_number=1))
    assert not sink.health().connected


def test_each_stream_is_announced_to_home_assistant_and_again_when_it_starts(broker: Broker) -> None:
    """A retained discovery message is published at a stream's first output, after a reconnect, and when Home Assistant
    restarts.
    """
    topic = "homeassistant/device/stream_gru_p1/config"
    with broker.client() as peer, open_sink(broker, {"home_assistant": True}) as sink:
        peer.subscribe("homeassistant/device/#")
        sink.write(second_outputs(1))
        wait_for(lambda: len(peer.payloads(topic)) == 1)
        device = json.loads(peer.payloads(topic)[0])
        assert device["state_topic"] == "stream_gru/p1/prediction"
        assert peer.heard[0].retain
        peer.publish("homeassistant/status", "offline")
        peer.publish("homeassistant/status", "online")
        wait_for(lambda: len(peer.payloads(topic)) == 2)
        broker.kill()
        broker.forget()
        broker.start()
        wait_for(lambda: sink.health().reconnects == 1)
        with broker.client() as other:
            other.subscribe("homeassistant/device/#")
            wait_for(lambda: other.payloads(topic) == peer.payloads(topic)[:1])


def test_numbers_that_are_none_do_not_stop_a_row(broker: Broker) -> None:
    """NaN is null in JSON; the row is published."""
    with broker.client() as peer, open_sink(broker) as sink, np.errstate(all="ignore"):
        peer.subscribe("stream_gru/+/prediction")
        outs = second_outputs(1)
        assert outs.forecast is not None
        outs.forecast[:] = np.nan
        sink.write(outs)
        wait_for(lambda: commit_answered(sink))
        wait_for(lambda: len(peer.heard) == 1)
        assert b"null" in peer.payloads()[0]
        logging.getLogger(__name__).debug("published")
