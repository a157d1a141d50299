"""Outputs for HTTP clients, over real HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import pytest

from stream_gru.connectors.sinks.encoders import JsonEncoder
from stream_gru.core.types import PredictionBatch
from stream_gru.runtime.http import broadcast as events
from stream_gru.runtime.http import broadcast as feed
from stream_gru.runtime.http import limits as connection
from stream_gru.runtime.http.broadcast import OutputBroadcaster
from stream_gru.runtime.http.server import WebServer
from tests.support.fake_daemon import FakeDaemon, Listener, daemon_outputs, serving
from tests.support.waiting import assert_returns, wait_for


@pytest.fixture
def daemon() -> FakeDaemon:
    """Return a daemon with a broadcaster."""
    return FakeDaemon()


@pytest.fixture
def server(daemon: FakeDaemon) -> Iterator[WebServer]:
    """Yield its server."""
    with serving(daemon) as served:
        yield served


def status_of(server: WebServer, path: str) -> int:
    """Return the status of a GET."""
    place = urlsplit(server.address)
    assert place.hostname is not None
    with closing(http.client.HTTPConnection(place.hostname, place.port, timeout=5)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def silent(server: WebServer) -> socket.socket:
    """A client that requests outputs and never reads."""
    place = urlsplit(server.address)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((place.hostname, place.port))
    client.sendall(b"GET /api/v1/outputs HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return client


def clients_of(one: OutputBroadcaster) -> int:
    """Return the number of clients."""
    return len(one._clients)


def queued(feed: OutputBroadcaster) -> int:
    """Return the number of rows queued for clients."""
    return sum(map(len, feed._clients))


class NeverEncode(JsonEncoder):
    """An encoder that fails when it is used."""

    def encode(self, batch: PredictionBatch) -> bytes:
        """No client is connected."""
        raise AssertionError


def test_without_clients_nothing_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder is not called."""
    monkeypatch.setattr(feed, "JsonEncoder", NeverEncode)
    one, batch = OutputBroadcaster(), daemon_outputs(["a"] * 1000)
    one.write(batch)


def test_a_client_receives_the_written_rows(daemon: FakeDaemon, server: WebServer) -> None:
    """Each event's data is the row as in a file, in order."""
    with closing(Listener(server)) as listener:
        assert listener.answer.headers["Content-Type"].startswith("text/event-stream")
        batch = daemon_outputs(["a", "b", "a"])
        daemon.feed.write(daemon_outputs([]))
        daemon.feed.write(batch)
        expected = [json.loads(line) for line in JsonEncoder().encode(batch).splitlines()]
        assert [listener.row() for _ in range(3)] == expected
        daemon.feed.write(daemon_outputs(["c"], first=9))
        assert listener.row()["steps"] == 9


def test_a_filter_selects_one_stream(daemon: FakeDaemon, server: WebServer) -> None:
    """Also one that starts later."""
    with closing(Listener(server, "?stream=b%201")) as some, closing(Listener(server)) as every:
        daemon.feed.write(daemon_outputs(["a", "a"]))
        daemon.feed.write(daemon_outputs(["a", "b 1", "c", "b 1"], first=10))
        assert [some.row()["steps"] for _ in range(2)] == [11, 13]
        assert [every.row()["steps"] for _ in range(6)] == [0, 1, 10, 11, 12, 13]


@pytest.mark.parametrize("name", ["", "a%0Ab", "x" * 129])
def test_an_invalid_filter_is_rejected(server: WebServer, name: str) -> None:
    """A text that cannot be a stream name."""
    with closing(Listener(server, f"?stream={name}")) as listener:
        assert listener.status == 400


def test_there_are_at_most_eight_clients(daemon: FakeDaemon, server: WebServer) -> None:
    """The ninth gets an error, metrics are served meanwhile, and a client that leaves frees a place."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(closing(Listener(server))) for _ in range(8)]
        ninth = stack.enter_context(closing(Listener(server)))
        assert ninth.status == 503
        assert "8 clients" in ninth.answer.read().decode()
        assert status_of(server, "/metrics") == 200
        listeners[0].close()
        wait_for(lambda: clients_of(daemon.feed) == 7)
        late = stack.enter_context(closing(Listener(server)))
        assert late.status == 200
        daemon.feed.write(daemon_outputs(["a"]))
        assert [one.row()["stream"] for one in [*listeners[1:], late]] == ["a"] * 8


def test_a_client_that_leaves_is_removed(daemon: FakeDaemon, server: WebServer) -> None:
    """After the last one nothing is encoded."""
    with closing(Listener(server)):
        assert clients_of(daemon.feed) == 1
    wait_for(lambda: clients_of(daemon.feed) == 0)
    assert queued(daemon.feed) == 0


def test_the_newest_rows_are_kept_and_the_loss_is_reported(daemon: FakeDaemon, server: WebServer) -> None:
    """Of a large batch only the newest 256 rows are encoded and sent; an event has the number of skipped rows."""
    with closing(Listener(server)) as listener:
        daemon.feed.write(daemon_outputs(["a"] * 1000))
        lines = [listener.line() for _ in range(2)]
        assert lines == ["event: dropped", 'data: {"rows":744}']
        assert [listener.row()["steps"] for _ in range(256)] == list(range(744, 1000))
        assert daemon.feed.dropped == 744


def test_a_queue_drops_its_oldest_rows(monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon, server: WebServer) -> None:
    """For a slow client newer rows replace them, by number and by bytes."""
    monkeypatch.setattr(events, "_BATCH_S", 0.5)
    with closing(Listener(server)) as listener:
        daemon.feed.write(daemon_outputs(["a"]))
        assert listener.row()["steps"] == 0
        for first in range(1, 1001, 100):
            daemon.feed.write(daemon_outputs(["a"] * 100, first))
        assert queued(daemon.feed) == 256
        assert listener.row()["steps"] == 745
        assert [listener.row()["steps"] for _ in range(255)][-1] == 1000
        for first in range(20):
            daemon.feed.write(daemon_outputs(["a"] * 10, first * 10, horizon=4000))
        assert queued(daemon.feed) < 100
        assert daemon.feed.dropped > 744 + 100


def test_comments_are_sent_while_there_are_no_rows(monkeypatch: pytest.MonkeyPatch, server: WebServer) -> None:
    """So that a client knows that the daemon is alive."""
    monkeypatch.setattr(events, "_PING_S", 0.05)
    with closing(Listener(server)) as listener:
        assert [listener.line() for _ in range(4)] == [": ping", ""] * 2


def test_a_listener_stays_longer_than_a_request_may_take(
    monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon, server: WebServer
) -> None:
    """The limit on the duration of a connection does not apply to clients of the outputs."""
    monkeypatch.setattr(connection, "IDLE_S", 0.2)
    monkeypatch.setattr(events, "_PING_S", 0.1)
    with closing(Listener(server)) as listener:
        assert [listener.line() for _ in range(10)] == [": ping", ""] * 5
        daemon.feed.write(daemon_outputs(["a"]))
        assert listener.row()["stream"] == "a"


def test_one_who_does_not_read_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon, server: WebServer
) -> None:
    """Clients that do not read starve neither the other clients nor the metrics, and are disconnected after a while."""
    monkeypatch.setattr(events, "_SEND_S", 0.3)
    monkeypatch.setattr(events, "_BATCH_S", 0.0)
    with ExitStack() as stack:
        quiet = [stack.enter_context(closing(silent(server))) for _ in range(7)]
        listener = stack.enter_context(closing(Listener(server)))
        wait_for(lambda: clients_of(daemon.feed) == 8)
        read: list[object] = []
        reader = threading.Thread(target=lambda: read.extend(iter(lambda: listener.row()["steps"], 999)))
        reader.start()
        batch = daemon_outputs(["a"] * 200, horizon=100)

        def only_the_reader_is_left() -> bool:
            daemon.feed.write(batch)
            assert status_of(server, "/metrics") == 200
            return clients_of(daemon.feed) == 1

        wait_for(only_the_reader_is_left)
        daemon.feed.write(daemon_outputs(["a"], first=999))
        reader.join(5)
        assert not reader.is_alive()
        assert len(read) >= 200
        assert len(quiet) == 7


def test_closing_the_broadcaster_disconnects_all_clients(daemon: FakeDaemon, server: WebServer) -> None:
    """They get the last rows and then the end, at once; so do later clients."""
    with closing(Listener(server)) as listener:
        daemon.feed.write(daemon_outputs(["a"]))
        daemon.feed.close()
        assert listener.row()["stream"] == "a"
        with pytest.raises(EOFError):
            listener.row()
        with closing(Listener(server)) as late, pytest.raises(EOFError):
            late.row()
        wait_for(lambda: clients_of(daemon.feed) == 0)


def test_a_broadcaster_outlives_its_server(daemon: FakeDaemon) -> None:
    """When another server replaces it, its clients are disconnected, and the broadcaster works with the new one."""
    with serving(daemon) as old, closing(Listener(old)) as listener:
        old.close()
        with pytest.raises(EOFError):
            listener.row()
    daemon.stop.clear()
    with serving(daemon) as new, closing(Listener(new)) as other:
        daemon.feed.write(daemon_outputs(["a"]))
        assert other.row()["stream"] == "a"


def test_a_server_stops_with_listeners(
    daemon: FakeDaemon, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing does not wait for a client that has stopped reading, and logs nothing."""
    monkeypatch.setattr(events, "_BATCH_S", 0.0)
    monkeypatch.setattr(events, "_SEND_S", 3600.0)
    with ExitStack() as stack:
        server = stack.enter_context(serving(daemon))
        listener = stack.enter_context(closing(Listener(server)))
        stack.enter_context(closing(silent(server)))
        wait_for(lambda: clients_of(daemon.feed) == 2)
        for _ in range(30):
            daemon.feed.write(daemon_outputs(["a"] * 200, horizon=100))
            listener.row()
        assert_returns(server.close)
        daemon.feed.write(daemon_outputs(["a"]))
    assert clients_of(daemon.feed) == 0
    assert [record.getMessage() for record in caplog.records] == []
