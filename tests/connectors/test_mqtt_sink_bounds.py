"""The memory of the MQTT sink is bounded, however many streams come and go."""

from __future__ import annotations

import logging

import pytest

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.sinks.availability import StreamAvailability
from stream_gru.connectors.sinks.mqtt import MqttSink, MqttSinkConfig
from stream_gru.core.log_limiter import LogOnce


@pytest.fixture
def sink() -> MqttSink:
    """A sink that never connects."""
    return MqttSink(MqttSinkConfig(), BrokerConfig(url="mqtt://127.0.0.1:1"), name="mqtt")


def pending_statuses(sink: MqttSink) -> dict[str, bytes]:
    """The pending stream statuses."""
    found = {}
    while (notice := sink._retained.take()) is not None:
        found[notice.topic.removeprefix("stream_gru/").removesuffix("/availability")] = notice.payload
    return found


def test_streams_that_are_gone_are_forgotten(sink: MqttSink) -> None:
    """The last hundred thousand of them are remembered; one that returns is online again."""
    for number in range(100_010):
        sink.stream_status(f"p{number}", True)
        sink.stream_status(f"p{number}", False)
    assert len(sink._streams) == 100_000
    assert len(pending_statuses(sink)) == 100_010
    sink.stream_status("p0", True)
    assert pending_statuses(sink) == {"p0": b"online"}


def test_an_evicted_stream_is_published_as_offline(sink: MqttSink) -> None:
    """No later event would publish it."""
    sink._streams = StreamAvailability(max_online=2)
    for stream in ("a", "b", "c"):
        sink.stream_status(stream, True)
    assert pending_statuses(sink) == {"a": b"offline", "b": b"online", "c": b"online"}


def test_a_thousand_complaints_are_logged_once_each_and_then_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """The last one says that it is the last."""
    complain = LogOnce(logging.getLogger(__name__), "sink mqtt", level=logging.ERROR)
    with caplog.at_level(logging.ERROR):
        for number in [*range(1500), *range(1500)]:
            complain(number, f"complaint {number}")
    assert len(caplog.messages) == 1000
    assert caplog.messages[0] == "sink mqtt: complaint 0; logged once"
    assert caplog.messages[-1] == "sink mqtt: complaint 999; logged once; further ones of other kinds are not logged"
    assert sum("further" in message for message in caplog.messages) == 1
