from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from stream_gru.core.errors import ConfigError
from stream_gru.runtime.http import limits as connection
from stream_gru.runtime.http.server import WebServer
from tests.support.waiting import assert_returns, wait_for

Probe = tuple[bool, str]


class Process:
    """The results of the probes."""

    healthy: Probe = (True, "healthy")
    ready: Probe = (False, "not ready")


@pytest.fixture
def process() -> Process:
    """Return a process that is healthy and not ready."""
    return Process()


@pytest.fixture
def server(process: Process) -> Iterator[WebServer]:
    """Yield a server on a free port, with one counter at 3."""
    registry = CollectorRegistry()
    Counter("stream_gru_test", "A counter", registry=registry).inc(3)
    served = WebServer("127.0.0.1:0", registry, lambda: process.healthy, lambda: process.ready)
    served.open()
    yield served
    served.close()


def ask_http(server: WebServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Return status, content type and text of a response."""
    data = b"x" * 10 if method in ("POST", "PUT") else None
    request = urllib.request.Request(server.address + path, data, headers, method=method)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", error.read().decode()


def connect(server: WebServer) -> socket.socket:
    """Open a bare connection."""
    place = urlsplit(server.address)
    return socket.create_connection((place.hostname, place.port), timeout=5)


def test_metrics_are_what_prometheus_reads(server: WebServer) -> None:
    """``/metrics`` responds without a redirect, in the text format, and a parser finds the counter."""
    status, kind, text = ask_http(server, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    (family,) = [f for f in text_string_to_metric_families(text) if f.name == "stream_gru_test"]
    assert family.samples[0].value == 3
    _, kind, text = ask_http(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert kind.startswith("application/openmetrics-text")
    assert text.endswith("# EOF\n")


def test_probes_return_the_current_state(server: WebServer, process: Process) -> None:
    """Healthy and ready respond 200 or 503 with the reason at that moment."""
    assert ask_http(server, "/-/healthy") == (200, "text/plain; charset=utf-8", "healthy\n")
    assert ask_http(server, "/-/ready")[::2] == (503, "not ready\n")
    process.ready = (True, "ready")
    process.healthy = (False, "stuck")
    assert ask_http(server, "/-/ready")[::2] == (200, "ready\n")
    assert ask_http(server, "/-/healthy")[::2] == (503, "stuck\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/-/ready"])
def test_only_get_and_head_are_allowed(server: WebServer, path: str, method: str) -> None:
    """Other methods are rejected."""
    assert ask_http(server, path, method)[0] == 405


def test_other_paths_are_not_found(server: WebServer) -> None:
    """There are only these three pages."""
    assert [ask_http(server, path)[0] for path in ("/", "/docs", "/metricsx", "/-/quit")] == [404] * 4


def test_it_is_bound_to_loopback_only(server: WebServer) -> None:
    """The address is the configured one, with the port that was free."""
    assert urlsplit(server.address).hostname == "127.0.0.1"
    with connect(server) as client:
        assert client.getpeername()[0] == "127.0.0.1"
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", urlsplit(server.address).port))


def test_it_stops_also_with_clients(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not wait for an idle connection or the rest of a request; then the port is closed."""
    monkeypatch.setattr(connection, "IDLE_S", 3600.0)
    with connect(server), connect(server) as half:
        half.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert ask_http(server, "/-/healthy")[0] == 200  # the others are accepted
        assert_returns(server.close)
        server.close()
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_closing_early_leaves_nothing_behind() -> None:
    """Before the server has started, or if it was never opened."""
    never = WebServer("127.0.0.1:0", CollectorRegistry(), lambda: (True, ""), lambda: (True, ""))
    never.close()
    never.open()
    never.close()


def test_silent_clients_do_not_block_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maximum of silent connections is closed after a while, and the next request gets a response."""
    monkeypatch.setattr(connection, "IDLE_S", 0.3)
    server = WebServer("127.0.0.1:0", CollectorRegistry(), lambda: (True, "healthy"), lambda: (True, ""))
    server.open()
    silent = [connect(server) for _ in range(20)]
    try:
        silent[0].sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        wait_for(lambda: ask_http(server, "/-/healthy")[0] == 200)
    finally:
        for client in silent:
            client.close()
        server.close()


def test_a_port_in_use_is_an_error(server: WebServer) -> None:
    """The message of the second server says what to do."""
    place = server.address.removeprefix("http://")
    second = WebServer(place, CollectorRegistry(), lambda: (True, ""), lambda: (True, ""))
    with pytest.raises(ConfigError, match=r"is not available: .*choose another port"):
        second.open()


@pytest.mark.parametrize("listen", ["", "9723", ":9723", "localhost", "localhost:", "localhost:x", "127.0.0.1:65536"])
def test_an_invalid_address_is_an_error(listen: str) -> None:
    """In particular an empty host, which would mean all interfaces."""
    with pytest.raises(ConfigError, match=r"metrics\.listen: expected an address and port"):
        WebServer(listen, CollectorRegistry(), lambda: (True, ""), lambda: (True, ""))
