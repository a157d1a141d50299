"""Hostile requests to the server and its clients, over real HTTP: none has an unintended effect."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from prometheus_client import CollectorRegistry, Counter
from starlette.routing import Route

from stream_gru.runtime.http import limits as connection
from stream_gru.runtime.http import server as module
from stream_gru.runtime.http.limits import CostCache, HostGuard, is_loopback
from stream_gru.runtime.http.server import build_app
from tests.support.fake_daemon import TOKEN, FakeDaemon, Listener, ServedDaemon, daemon_outputs, serving
from tests.support.waiting import wait_for

SAFE = ("GET", "HEAD", "OPTIONS", "TRACE")


@pytest.fixture(scope="module")
def shared_daemon() -> Iterator[ServedDaemon]:
    """One server for all tests."""
    with patient() as served:
        yield served


@contextmanager
def patient(daemon: FakeDaemon | None = None) -> Iterator[ServedDaemon]:
    """Return a server in front of a daemon."""
    daemon = daemon or FakeDaemon()
    with serving(daemon) as server:
        yield ServedDaemon(daemon, server)


def routes() -> list[Route]:
    """Return the routes as they are built."""
    guard = build_app(CollectorRegistry(), lambda: (True, ""), lambda: (True, ""), "localhost", FakeDaemon().api())
    assert isinstance(guard, HostGuard)
    return list(guard._app.routes)  # type: ignore[attr-defined]


@pytest.mark.parametrize("route", routes(), ids=lambda route: route.path)
@pytest.mark.parametrize("method", SAFE)
def test_no_safe_method_changes_anything(shared_daemon: ServedDaemon, route: Route, method: str) -> None:
    """On all routes: with the token and a body, GET and the like reach no command."""
    shared_daemon.daemon.done.clear()
    client = http.client.HTTPConnection(*shared_daemon.address, timeout=5)
    with closing(client):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        client.request(method, route.path + "?all=true&stream=a", b'{"all": true}', headers)
        status = client.getresponse().status
    assert shared_daemon.daemon.done == []
    assert status == 405 or (method in ("GET", "HEAD") and not route.path.endswith(("reset", "pause", "resume")))


@pytest.mark.parametrize("path", ["/metrics", "/-/ready", "/api/v1/status", "/api/v1/outputs", "/nothing"])
def test_every_response_has_security_headers(shared_daemon: ServedDaemon, path: str) -> None:
    """Nothing foreign is loaded, framed, guessed or forwarded, also in errors; one request per connection."""
    client = http.client.HTTPConnection(*shared_daemon.address, timeout=5)
    with closing(client):
        client.request("HEAD", path)
        headers = client.getresponse().headers
    assert headers["content-security-policy"].startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["connection"] == "close"
    assert "server" not in headers
    assert "access-control-allow-origin" not in headers


HOSTILE = ["<script>alert(1)</script>", "a\nb", 'a"b', "a\\", "../../etc/passwd", "é", "a\x00", "%3Cscript%3E"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_returned_as_data_only(shared_daemon: ServedDaemon, name: str) -> None:
    """What a client sends appears in JSON, never in HTML."""
    shared_daemon.daemon.done.clear()
    client = http.client.HTTPConnection(*shared_daemon.address, timeout=5)
    with closing(client):
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        client.request("POST", "/api/v1/reset", json.dumps({"stream": name}).encode(), headers)
        answer = client.getresponse()
        result = json.loads(answer.read())
    assert answer.headers["content-type"] == "application/json"
    assert answer.status == (404 if name.startswith("..") else 400)  # dots and slashes may be in a name
    assert result["ok"] is False
    assert shared_daemon.daemon.done == []


PATHS = ["/%61pi/v1/../v1/status", "/api/v1/../status", "//api/v1/status", "/api/v1/status/", "/api%2Fv1%2Fstatus/..",
         "/-/../api/v1/status", "/-/%2e%2e/api/v1/status", "/metrics/../api/v1/status", "/metrics/", "/-/healthy/",
         "/%00", "/\\", "/api/v1/status%20", "/API/v1/status", "http://evil.example/api/v1/status", "*"]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_unusual_paths_are_not_found(shared_daemon: ServedDaemon, path: str) -> None:
    """No path is normalised, so none bypasses the check of host names; no redirect goes where a client says."""
    answer = shared_daemon.raw(f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 404 ", b"HTTP/1.1 400 "))
    assert b"location" not in answer.lower()
    assert b"model_id" not in answer


def test_an_encoded_path_is_checked_like_a_plain_one(shared_daemon: ServedDaemon) -> None:
    """Percent encoding does not hide a route from the check of host names."""
    request = "GET /%61pi/v1/st%61tus HTTP/1.1\r\nHost: {}\r\n\r\n"
    assert shared_daemon.raw(request.format("evil.example").encode()).startswith(b"HTTP/1.1 403 ")
    assert b"model_id" in shared_daemon.raw(request.format("localhost").encode())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:9100", 200), ("[::1]", 200), ("[::1]:9100", 200), ("LOCALHOST:80", 200),
        ("[::1].evil.example", 403), ("[::1]evil", 403), ("127.0.0.1:x@evil.example", 403), ("[evil.example]", 403),
        ("127.0.0.1@evil.example", 403), ("127.0.0.1:80:evil.example", 403), ("[::1", 403), ("", 403), ("::1", 403),
    ],
)  # fmt: skip
def test_only_a_whole_header_of_a_known_host_is_accepted(shared_daemon: ServedDaemon, host: str, status: int) -> None:
    """A known name or address inside of another name is not enough."""
    answer = shared_daemon.raw(f"GET /api/v1/status HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.0\r\n\r\n", 200),
        (b"GET /api/v1/status HTTP/1.0\r\n\r\n", 403),
        (b"get /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"BREW /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", 400),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 15_000 + b"\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX : y\r\n\r\n", 400),
    ],
)
def test_requests_are_parsed_strictly(shared_daemon: ServedDaemon, request_: bytes, status: int) -> None:
    """Too large, contradictory or malformed ones are rejected, and the connection is closed."""
    answer = shared_daemon.raw(request_)
    assert answer == b"" or int(answer[9:12]) == status, answer[:100]


def test_pipelined_requests_get_one_response(shared_daemon: ServedDaemon) -> None:
    """The connection closes after the first."""
    for path in (b"/metrics", b"/nothing", b"/api/v1/reset"):
        answer = shared_daemon.raw(
            b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"GET /metrics HTTP/1.1\r\n" * 9
        )
        assert answer.count(b"HTTP/1.1 ") == 1


def test_the_oldest_connection_is_closed_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle connections are closed, oldest first; clients that receive outputs stay."""
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 4)
    monkeypatch.setattr(connection, "IDLE_S", 60)
    with patient() as shared_daemon, closing(Listener(shared_daemon.server)) as listener:
        idle = [socket.create_connection(shared_daemon.address, timeout=5) for _ in range(12)]
        assert all(one.recv(1) == b"" for one in idle[:7])
        assert shared_daemon.raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        shared_daemon.daemon.feed.write(daemon_outputs(["a"]))
        assert listener.row()["stream"] == "a"
        for one in idle:
            one.close()


def test_a_closed_connection_leaves_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer would keep the connection in memory."""
    monkeypatch.setattr(connection, "IDLE_S", 1000)
    ended: list[connection.BoundedConnection] = []
    lost = connection.BoundedConnection.connection_lost

    def remember(self: connection.BoundedConnection, exc: Exception | None) -> None:
        lost(self, exc)
        ended.append(self)

    monkeypatch.setattr(connection.BoundedConnection, "connection_lost", remember)
    with patient() as shared_daemon:
        for _ in range(3):
            socket.create_connection(shared_daemon.address).close()
        assert shared_daemon.raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: len(ended) == 4)
        assert all(one._end.cancelled() for one in ended)


def test_long_lists_are_rejected_at_much_unread(shared_daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small responses are still sent."""
    monkeypatch.setattr(connection.BoundedConnection, "unsent_bytes", lambda _: 10_000_000)
    assert shared_daemon.raw(b"GET /api/v1/streams HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 503 ")
    assert shared_daemon.raw(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_the_cost_cache_keeps_a_result_in_proportion_to_its_cost() -> None:
    """For four times its duration; each key has its own result, and there are few keys."""
    now_s, made = [0.0], []

    def make() -> str:
        now_s[0] += 1.0
        made.append(now_s[0])
        return f"{now_s[0]}"

    lately: CostCache[str] = CostCache(lambda: now_s[0])
    assert lately.get("a", make) == "1.0"
    now_s[0] = 4.9
    assert lately.get("a", make) == "1.0"
    assert lately.get("b", make) == "5.9"
    assert lately.get("a", make) == "6.9"
    for kind in "cdefghijkl":
        lately.get(kind, make)
    assert len(lately._cached) <= 8


def test_metrics_are_current(shared_daemon: ServedDaemon) -> None:
    """A new count is visible at once: rendering the text is fast."""
    registry = CollectorRegistry()
    counter = Counter("x", "x", registry=registry)
    with serving(FakeDaemon(), registry=registry) as server:
        served = ServedDaemon(FakeDaemon(), server)
        for number in range(1, 4):
            counter.inc()
            wait_for(
                lambda n=number: b"x_total %d.0" % n in served.raw(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),  # type: ignore[misc]
                timeout_s=1,
            )


@pytest.mark.parametrize(
    ("listen", "token", "words"),
    [
        ("127.0.0.1:0", "", ""),
        ("[::1]:0", "", ""),
        ("0.0.0.0:0", "", "no token: anyone who can connect can read everything"),
        ("0.0.0.0:0", TOKEN, "the token is sent in plain text"),
    ],
)
def test_a_public_address_is_a_warning(listen: str, token: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """At the start, with what others can do; on loopback there is no warning."""
    with caplog.at_level(logging.WARNING, module.__name__), serving(FakeDaemon(token=token), listen):
        pass
    assert (words in caplog.text) if words else not caplog.text
    assert TOKEN not in caplog.text


def test_loopback_is_more_than_one_address() -> None:
    """Of both families, and no other address."""
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "fe80::1%eth0")))  # noqa: S104 - not bound


def test_tokens_are_compared_in_constant_time(shared_daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every given token goes through `hmac.compare_digest`, and nothing else decides."""
    seen: list[tuple[bytes, bytes]] = []

    def compare(given: bytes, wanted: bytes) -> bool:
        seen.append((given, wanted))
        return False

    monkeypatch.setattr("stream_gru.runtime.http.api.hmac.compare_digest", compare)
    request = f"POST /api/v1/reset HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    assert shared_daemon.raw(request.encode()).startswith(b"HTTP/1.1 401 ")
    assert seen == [(TOKEN.encode(), TOKEN.encode())]


def test_an_internal_error_reveals_nothing(shared_daemon: ServedDaemon, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets three words; the log has the traceback, and no token in it."""
    request = f"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()

    def broken() -> None:
        raise RuntimeError("inside")

    daemon = FakeDaemon()
    daemon.status = broken  # type: ignore[method-assign, assignment]
    with patient(daemon) as served:
        answer = served.raw(request)
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert answer.endswith(b"Internal Server Error")
    assert "RuntimeError: inside" in caplog.text
    assert TOKEN not in caplog.text
