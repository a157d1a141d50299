"""The sink for InfluxDB against a real HTTP server that answers as it is told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stream_gru.config.live import InfluxSinkConfig
from stream_gru.errors import ConfigError, SinkPending, SinkUnavailable
from stream_gru.protocols import Sink
from stream_gru.sinks import build_sink
from stream_gru.sinks.encode_line import LineEncoder
from stream_gru.sinks.influx import InfluxSink, Poster
from stream_gru.types import PredictionBatch
from tests.support.http_server import serving
from tests.support.predictions import part
from tests.support.streams import batch, toy_pipeline

OUTPUTS = toy_pipeline().process(batch(["p"] * 5, list(range(5))))


@contextmanager
def sending(url: str, stopping: Callable[[], bool] = lambda: False, **options: object) -> Iterator[InfluxSink]:
    """An open sink with short pauses."""
    sink = InfluxSink(InfluxSinkConfig(url=url, **options), stopping=stopping, pause_s=0.01)  # type: ignore[arg-type]
    sink.open()
    try:
        yield sink
    finally:
        sink.close()
        sink.close()


def flushed(sink: Sink, patience_s: float = 5) -> int:
    """Flush until everything is confirmed."""
    end = time.monotonic() + patience_s
    while True:
        try:
            return sink.flush()
        except SinkPending:
            if time.monotonic() > end:
                raise


def lines(out: PredictionBatch) -> bytes:
    """What shall arrive."""
    return LineEncoder().encode(out)


def test_rows_arrive_in_order_with_the_token(tmp_path: Path) -> None:
    """Compressed line protocol at the whole address, over one connection; what is confirmed is told."""
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "token").chmod(0o600)
    with serving(204) as server, sending(server.url, token_file=str(tmp_path / "token")) as sink:
        assert not sink.health().connected
        sink.write(OUTPUTS)
        assert flushed(sink) == len(lines(OUTPUTS))
        sink.write(part(OUTPUTS, slice(0, 2)))
        sink.write(part(OUTPUTS, slice(2, 5)))
        assert flushed(sink) == 2 * len(lines(OUTPUTS))
        assert server.rows == 2 * lines(OUTPUTS)
        assert {asked["Authorization"] for asked in server.asked} == {"Token s3cret"}
        assert {asked["path"] for asked in server.asked} == {"/api/v2/write?bucket=b&precision=ns"}
        health = sink.health()
        assert (health.connected, health.queued, health.failed, health.discarded) == (True, 0, 0, 0)


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_failure_that_passes_is_tried_again(status: int) -> None:
    """The same rows, once each, in order; that the server is back is counted."""
    with serving(204, status, status, 204) as server, sending(server.url, when_full="block") as sink:
        for rows in (slice(0, 2), slice(2, 5)):
            sink.write(part(OUTPUTS, rows))
            flushed(sink)
        assert server.rows == lines(OUTPUTS)
        assert len(server.asked) == 4
        assert (sink.health().reconnects, sink.health().failed) == (1, 0)


def test_the_server_says_how_long_to_wait() -> None:
    """`Retry-After` is honoured in place of the own pause."""
    with serving(429, 204, headers={"Retry-After": "1"}) as server, sending(server.url, when_full="block") as sink:
        begin = time.monotonic()
        sink.write(OUTPUTS)
        flushed(sink)
        assert 0.9 < time.monotonic() - begin < 4
        assert server.rows == lines(OUTPUTS)


def test_refused_rows_are_counted_told_once_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """A bad token stays bad: rows go, and the log holds the beginning of the answer, not a line for each request."""
    with serving(401, text=b"unauthorized access " * 50) as server, sending(server.url) as sink:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                sink.write(OUTPUTS)
                assert flushed(sink) == 0
        assert (sink.health().failed, sink.health().queued, sink.health().connected) == (15, 0, True)
        assert server.bodies == []
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "refused outputs with 401: unauthorized access" in record.getMessage()
    assert len(record.getMessage()) < 400


def test_a_server_that_hangs_times_out_and_is_asked_again() -> None:
    """Meanwhile flush says that rows are pending; in the end they are there."""
    with (
        serving(204, hang=True) as server,
        sending(server.url, when_full="block", timeout_s=0.3) as sink,
    ):
        sink.write(OUTPUTS)
        assert server.came.wait(5)
        with pytest.raises(SinkPending, match="5 outputs are not confirmed yet"):
            sink.flush()
        assert sink.health().queued == 5
        while not sink._away:  # the first request has run out of time
            time.sleep(0.01)
        assert not sink.health().connected
        server.go.set()
        flushed(sink)
        assert server.rows.endswith(lines(OUTPUTS))


def test_a_full_queue_loses_its_oldest_rows_and_counts_them() -> None:
    """With ``drop_oldest`` writing never waits, and the newest rows arrive."""
    with serving(503) as server, sending(server.url, queue_rows=4) as sink:
        sink.write(part(OUTPUTS, slice(0, 1)))
        assert server.came.wait(5)
        for _ in range(3):
            sink.write(OUTPUTS)
        health = sink.health()
        assert health.queued == 4
        assert health.discarded == 16 - 4
        server.statuses[:] = [204]
        deadline = time.monotonic() + 5
        while sink.health().queued and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.rows.endswith(lines(part(OUTPUTS, slice(2, 5))))


def test_a_server_that_is_away_holds_up_nobody_unless_it_shall() -> None:
    """With ``drop_oldest`` inputs go on being acknowledged, with ``block`` they wait for the server."""
    for when_full, held_up in (("drop_oldest", False), ("block", True)):
        with serving(503) as server, sending(server.url, when_full=when_full) as sink:
            sink.write(OUTPUTS)
            while not sink._away:
                time.sleep(0.01)
            if held_up:
                with pytest.raises(SinkPending):
                    sink.flush()
            else:
                assert sink.flush() == 0
            server.statuses[:] = [204]


def test_a_full_queue_blocks_until_there_is_room() -> None:
    """With ``block`` no row is lost, not even of a batch larger than the queue."""
    with serving(204, hang=True) as server, sending(server.url, when_full="block", queue_rows=2) as sink:
        writer = threading.Thread(target=sink.write, args=(OUTPUTS,))
        writer.start()
        assert server.came.wait(5)
        writer.join(0.1)
        assert writer.is_alive()
        assert sink.health().queued <= 2
        server.go.set()
        writer.join(5)
        assert not writer.is_alive()
        flushed(sink)
        assert server.rows == lines(OUTPUTS)
        assert sink.health().discarded == 0


def test_a_stop_ends_the_waiting_for_room() -> None:
    """The batch in hand is queued past the bound, unconfirmed: its input comes again."""
    with (
        serving(204, hang=True) as server,
        sending(server.url, stopping=lambda: True, when_full="block", queue_rows=2) as sink,
    ):
        sink.write(OUTPUTS)
        assert sink.health().queued == 5
        with pytest.raises(SinkPending):
            sink.flush()
        server.go.set()


def test_closing_sends_what_is_left_and_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A quick server gets everything; for one that hangs nobody waits longer than two seconds."""
    with serving(204) as server:
        with sending(server.url) as sink:
            sink.write(OUTPUTS)
        assert server.rows == lines(OUTPUTS)
    with serving(204, hang=True) as server, caplog.at_level(logging.WARNING):
        with sending(server.url) as sink:
            sink.write(OUTPUTS)
            begin = time.monotonic()
        assert time.monotonic() - begin < 3
    assert "5 outputs were not confirmed before the end" in caplog.text


def test_no_server_at_all_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """A refused connection is tried again and again, and logged once."""
    with caplog.at_level(logging.WARNING), sending("http://127.0.0.1:9/write") as sink:
        sink.write(OUTPUTS)
        while not sink._away:
            time.sleep(0.01)
        time.sleep(0.1)
    told = [record for record in caplog.records if "trying again" in record.getMessage()]
    assert len(told) == 1
    assert "Connection refused" in told[0].getMessage()


def test_a_dead_sender_is_a_bug_that_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process must not live on without its thread."""

    def broken(self: Poster, body: bytes) -> None:
        raise KeyError(body)

    monkeypatch.setattr(Poster, "post", broken)
    with sending("http://127.0.0.1:9/write") as sink:
        sink.write(OUTPUTS)
        with pytest.raises(RuntimeError, match="sender of outputs has ended") as caught:
            flushed(sink)
        assert isinstance(caught.value.__cause__, KeyError)


def test_what_is_configured_is_checked(tmp_path: Path) -> None:
    """An address that cannot be is refused at once, a token that is not there on opening, as is writing before it."""
    for url in ("http://host:99999/write", "https://:80", "http://[::1/write"):
        with pytest.raises(ConfigError, match=r"sink\.url: expected an address"):
            InfluxSink(InfluxSinkConfig(url=url))
    sink = build_sink(InfluxSinkConfig(url="https://db:8086/write", token_file=str(tmp_path / "none")), "influx")
    with pytest.raises(SinkUnavailable, match="not open"):
        sink.write(OUTPUTS)
    with pytest.raises(ConfigError, match="none: expected a file with a secret"):
        sink.open()
    sink.close()
    assert isinstance(sink, Sink)
