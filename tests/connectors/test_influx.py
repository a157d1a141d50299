"""The sink for InfluxDB against a real HTTP server with scripted answers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stream_gru.config.connector import SinkContext
from stream_gru.connectors.registry import build_sink
from stream_gru.connectors.sinks.encoders import LineEncoder
from stream_gru.connectors.sinks.influx import InfluxClient, InfluxSink, InfluxSinkConfig
from stream_gru.core.commit_records import OutboxRow, SinkCheckpoint
from stream_gru.core.errors import ConfigError, SinkUnavailable, StateError
from stream_gru.core.protocols import Sink
from stream_gru.core.types import PredictionBatch
from tests.support.batches import batch, part
from tests.support.influx_server import influx_server
from tests.support.pipelines import toy_pipeline
from tests.support.waiting import wait_for

OUTPUTS = toy_pipeline().process(batch(["p"] * 5, list(range(5))))


@contextmanager
def sending(url: str, kept: SinkCheckpoint | None = None, **options: Any) -> Iterator[InfluxSink]:
    """An open sink with short pauses; ``kept`` is its part of the store."""
    own: dict[str, Any] = {"gather_s": 0.01, "immediate": False}
    own |= {key: options.pop(key) for key in own if key in options}
    sink = InfluxSink(InfluxSinkConfig(url=url, **options), pause_s=0.01, **own)
    sink.open(kept)
    try:
        yield sink
    finally:
        sink.close()
        sink.close()


def flush_until_sent(sink: Sink) -> None:
    """Wait until everything is acknowledged; an error of the sender is raised."""

    def answered() -> bool:
        sink.flush()
        sink.committed()
        return not sink.health().queued

    wait_for(answered)


def expected_lines(out: PredictionBatch) -> bytes:
    """The lines that should arrive."""
    return LineEncoder().encode(out)


def test_rows_arrive_in_order_with_the_token(tmp_path: Path) -> None:
    """Compressed line protocol at the full URL, over one connection."""
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "token").chmod(0o600)
    with influx_server(204) as server, sending(server.url, token_file=str(tmp_path / "token")) as sink:
        assert not sink.health().connected
        sink.write(OUTPUTS)
        flush_until_sent(sink)
        sink.write(part(OUTPUTS, slice(0, 2)))
        sink.write(part(OUTPUTS, slice(2, 5)))
        flush_until_sent(sink)
        assert server.rows == 2 * expected_lines(OUTPUTS)
        assert {asked["Authorization"] for asked in server.asked} == {"Token s3cret"}
        assert {asked["path"] for asked in server.asked} == {"/api/v2/write?bucket=b&precision=ns"}
        health = sink.health()
        assert (health.connected, health.queued, health.failed, health.dropped) == (True, 0, 0, 0)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_failure_that_passes_is_tried_again(status: int) -> None:
    """The same rows, once each, in order; the recovery of the server is counted."""
    with influx_server(204, status, status, 204) as server, sending(server.url, when_full="block") as sink:
        for rows in (slice(0, 2), slice(2, 5)):
            sink.write(part(OUTPUTS, rows))
            flush_until_sent(sink)
        assert server.rows == expected_lines(OUTPUTS)
        assert len(server.asked) == 4
        assert (sink.health().reconnects, sink.health().failed) == (1, 0)


def test_the_server_sets_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Retry-After` replaces the sink's own pause."""
    pauses: list[float] = []

    def rest(self: InfluxSink, pause_s: float) -> bool:
        pauses.append(pause_s)
        return True

    monkeypatch.setattr(InfluxSink, "_rest", rest)
    with (
        influx_server(429, 204, headers={"Retry-After": "7"}) as server,
        sending(server.url, when_full="block") as sink,
    ):
        sink.write(OUTPUTS)
        flush_until_sent(sink)
        assert server.rows == expected_lines(OUTPUTS)
    assert pauses == [7.0]


def test_refused_rows_are_counted_logged_once_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """Each status is logged once, with the start of the response, also when rows are accepted in between."""
    with influx_server(400, 400, 200, 422, text=b"field type\nconflict " * 50) as server, sending(server.url) as sink:
        with caplog.at_level(logging.WARNING):
            for _ in range(5):
                sink.write(OUTPUTS)
                flush_until_sent(sink)
        assert (sink.health().failed, sink.health().queued, sink.health().connected) == (20, 0, True)
        assert server.bodies == [expected_lines(OUTPUTS)]
    first, second = caplog.records
    assert {first.levelname, second.levelname} == {"ERROR"}
    assert "refused outputs with 400: field type conflict field" in first.getMessage()
    assert "refused outputs with 422: " in second.getMessage()
    assert len(first.getMessage()) < 400


def test_a_refusal_without_text_is_logged_as_such(caplog: pytest.LogCaptureFixture) -> None:
    """The log line says that the response has no text."""
    with influx_server(413) as server, sending(server.url) as sink:
        sink.write(OUTPUTS)
        flush_until_sent(sink)
        assert sink.health().failed == 5
    assert "refused outputs with 413: no text; logged once" in caplog.text


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "check token_file"),
        (403, "check token_file"),
        (404, "check url: database or bucket"),
        (308, "check url: it redirects"),
    ],
)
def test_rows_wait_until_the_configuration_is_fixed(status: int, advice: str, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing counts as refused; each reason is logged once with the next step, and after the fix all rows arrive."""
    with (
        caplog.at_level(logging.INFO),
        influx_server(status, status, 503, status, 503, 200, text=b"no") as server,
        sending(server.url, when_full="block") as sink,
    ):
        server.go.clear()
        sink.write(OUTPUTS)
        assert server.came.wait(20)
        server.go.set()
        wait_for(lambda: sink._unreachable)
        assert not sink.health().connected
        flush_until_sent(sink)
        assert server.rows == expected_lines(OUTPUTS)
        assert (sink.health().failed, sink.health().connected) == (0, True)
    lines = [record.getMessage().partition(": ")[2] for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == 2
    assert lines[0].startswith(f"responded {status}: no; {advice}")
    assert lines[1] == "responded 503: no; retrying"


def test_a_token_is_read_again_when_it_was_not_good(tmp_path: Path) -> None:
    """Fixing the file is enough, also when it is missing for a while."""
    token = tmp_path / "token"
    token.write_text("old")
    token.chmod(0o600)
    with influx_server(401) as server, sending(server.url, token_file=str(token)) as sink:
        sink.write(OUTPUTS)
        assert server.came.wait(20)
        token.rename(tmp_path / "other")
        wait_for(lambda: len(server.asked) > 2)
        (tmp_path / "other").write_text("new")
        (tmp_path / "other").rename(token)
        wait_for(lambda: server.asked[-1]["Authorization"] == "Token new")
        server.statuses[:] = [204]
        wait_for(lambda: sink.health().connected)
        flush_until_sent(sink)
        assert server.rows == expected_lines(OUTPUTS)
        assert {asked["Authorization"] for asked in server.asked} == {"Token old", "Token new"}


def test_rows_are_gathered_after_a_request() -> None:
    """The first rows go at once, the next ones when there are enough, and the last ones at close."""
    one = part(OUTPUTS, slice(0, 1))
    with influx_server(204) as server:
        with sending(server.url, gather_s=3600) as sink:
            sink.write(one)
            flush_until_sent(sink)
            for _ in range(500):
                sink.write(one)
            flush_until_sent(sink)
            sink.write(one)
            sink.write(one)
            assert sink.health().queued == 2
        assert [body.count(b"\n") for body in server.bodies] == [1, 500, 2]


def test_a_partial_batch_is_sent_after_a_time() -> None:
    """A partial batch is sent when its time is over."""
    with influx_server(204) as server, sending(server.url, gather_s=0.2) as sink:
        for _ in range(3):
            sink.write(OUTPUTS)
            flush_until_sent(sink)
        assert server.rows == 3 * expected_lines(OUTPUTS)


def test_a_server_that_hangs_times_out_and_is_asked_again() -> None:
    """Meanwhile the rows are queued; at the end they have arrived."""
    with (
        influx_server(204, hang=True) as server,
        sending(server.url, when_full="block", timeout_s=0.3) as sink,
    ):
        sink.write(OUTPUTS)
        assert server.came.wait(5)
        assert sink.health().queued == 5
        wait_for(lambda: sink._unreachable, what="the first request to run out of time")
        assert not sink.health().connected
        server.go.set()
        flush_until_sent(sink)
        assert server.rows.endswith(expected_lines(OUTPUTS))


def test_a_full_queue_loses_its_oldest_rows_and_counts_them() -> None:
    """With ``drop_oldest`` writing never waits, and the newest rows arrive."""
    with influx_server(503) as server, sending(server.url, queue_size=4) as sink:
        sink.write(part(OUTPUTS, slice(0, 1)))
        assert server.came.wait(5)
        for _ in range(3):
            sink.write(OUTPUTS)
        health = sink.health()
        assert health.queued == 4
        assert health.dropped == 16 - 4
        server.statuses[:] = [204]
        wait_for(lambda: not sink.health().queued)
        assert server.rows.endswith(expected_lines(part(OUTPUTS, slice(2, 5))))


def test_a_server_that_is_down_blocks_only_with_block() -> None:
    """Writing and flushing never wait; with ``block`` a full queue is not ready until there is space."""
    for when_full, ready in (("drop_oldest", True), ("block", False)):
        with influx_server(503) as server, sending(server.url, when_full=when_full, queue_size=5) as sink:
            assert sink.ready()
            sink.write(OUTPUTS)
            wait_for(lambda: sink._unreachable)
            assert sink.ready() is ready
            sink.write(OUTPUTS)
            assert len(sink.flush().unacked) == sink.health().queued == (5 if ready else 10)
            sink.committed()
            server.statuses[:] = [204]
            wait_for(sink.ready)
            flush_until_sent(sink)
            assert sink.health().dropped == (5 if ready else 0)


def test_rows_wait_for_their_commit_and_survive_a_kill() -> None:
    """Nothing is sent before it is stored; the next process sends unacknowledged rows first, under the old numbers."""
    with influx_server(204) as server:
        with sending(server.url, SinkCheckpoint()) as sink:
            sink.write(OUTPUTS)
            written = sink.flush()
            assert [row.number for row in written.unacked] == [1, 2, 3, 4, 5]
            assert b"".join(row.payload for row in written.unacked) == expected_lines(OUTPUTS)
            sink.close()
            assert not server.asked
            assert sink.flush() == written
        with sending(server.url, SinkCheckpoint(unacked=written.unacked, last_number=5)) as sink:
            wait_for(lambda: not sink.health().queued)
            sink.write(OUTPUTS)
            result = sink.flush()
            assert (list(result.acked), result.unacked[0].number) == ([1, 2, 3, 4, 5], 6)
        assert server.rows == expected_lines(OUTPUTS)


def test_immediate_rows_do_not_wait_for_a_commit() -> None:
    """Rows answered before the commit need not be stored at all; a refusal is an answer too."""
    for status, failed in ((204, 0), (400, 5)):
        with influx_server(status) as server, sending(server.url, SinkCheckpoint(), immediate=True) as sink:
            sink.write(OUTPUTS)
            wait_for(lambda: not sink.health().queued)
            assert sink.health().failed == failed
            written = sink.flush()
            assert (written.unacked, list(written.acked)) == ([], [])


def test_a_successor_continues_where_the_old_one_was() -> None:
    """Stored rows keep their numbers, answered ones are reported, and unstored ones are stored next."""
    with influx_server(503) as away, sending(away.url, SinkCheckpoint()) as old:
        old.write(part(OUTPUTS, slice(0, 2)))
        old.flush()
        old.committed()
        old.write(part(OUTPUTS, slice(2, 5)))
        assert away.came.wait(20)
        old.close()
        left = old.handoff()
        assert len(left.rows) == 5
    with influx_server(204) as server, sending(server.url) as heir:
        heir.adopt(left)
        wait_for(lambda: heir.health().queued == 3)
        written = heir.flush()
        assert ([row.number for row in written.unacked], list(written.acked)) == ([3, 4, 5], [1, 2])
        heir.committed()
        flush_until_sent(heir)
        assert server.rows == expected_lines(OUTPUTS)


def test_outputs_of_a_sink_of_another_kind_are_not_sent() -> None:
    """A name that belonged to an MQTT sink before: its JSON is not line protocol."""
    sink = InfluxSink(InfluxSinkConfig(url="http://127.0.0.1:9/write"))
    with pytest.raises(StateError, match="expected stored lines"):
        sink.open(SinkCheckpoint(unacked=[OutboxRow("t", b"{}", "p/1", 1)], last_number=1))


def test_closing_sends_what_is_left_and_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A fast server gets everything; closing does not wait for one that hangs."""
    with influx_server(204) as server:
        with sending(server.url) as sink:
            sink.write(OUTPUTS)
        assert server.rows == expected_lines(OUTPUTS)
    with (
        influx_server(204, hang=True) as server,
        caplog.at_level(logging.WARNING),
        sending(server.url, timeout_s=60.0) as sink,
    ):
        sink.write(OUTPUTS)
        assert server.came.wait(20)
        sink.close()
        assert not server.go.is_set()
    assert "5 outputs were not acknowledged before the end" in caplog.text


def test_a_missing_server_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A refused connection is retried, and logged once."""
    with caplog.at_level(logging.WARNING), sending("http://127.0.0.1:9/write") as sink:
        attempts: list[float] = []
        rest = sink._rest
        sink._rest = lambda pause_s: attempts.append(pause_s) or rest(pause_s)  # type: ignore[method-assign,func-returns-value]
        sink.write(OUTPUTS)
        wait_for(lambda: len(attempts) > 2)
    lines = [record for record in caplog.records if "retrying" in record.getMessage()]
    assert len(lines) == 1
    assert "Connection refused" in lines[0].getMessage()


def test_a_dead_sender_is_a_bug_that_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process must not continue without its sender thread."""

    def broken(self: InfluxClient, body: bytes) -> None:
        raise KeyError(body)

    monkeypatch.setattr(InfluxClient, "post", broken)
    with sending("http://127.0.0.1:9/write") as sink:
        sink.write(OUTPUTS)
        with pytest.raises(RuntimeError, match="sender thread has ended") as caught:
            flush_until_sent(sink)
        assert isinstance(caught.value.__cause__, KeyError)


def test_what_is_configured_is_checked(tmp_path: Path) -> None:
    """An invalid address is refused at once, a missing token at open, as is writing before open."""
    for url in ("http://host:99999/write", "https://:80", "http://[::1/write"):
        with pytest.raises(ConfigError, match=r"sink\.url: expected an address"):
            InfluxSink(InfluxSinkConfig(url=url))
    sink = build_sink(
        InfluxSinkConfig(url="https://db:8086/write", token_file=str(tmp_path / "none")), SinkContext("influx")
    )
    with pytest.raises(SinkUnavailable, match="not open"):
        sink.write(OUTPUTS)
    with pytest.raises(ConfigError, match="none: expected a file with a secret"):
        sink.open(None)
    sink.close()
    assert isinstance(sink, Sink)
