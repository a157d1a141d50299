"""Status, streams and commands over real HTTP."""

from __future__ import annotations

import http.client
import json
import logging
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from prometheus_client import CollectorRegistry

from stream_gru.runtime.control.commands import Action, Command
from stream_gru.runtime.http import api as api_module
from stream_gru.runtime.http import limits as connection
from stream_gru.runtime.http.server import WebServer
from tests.support.fake_daemon import TOKEN, FakeDaemon, ServedDaemon, serving
from tests.support.waiting import wait_for

COMMANDS = [f"/api/v1/{action}" for action in Action]
JSON = {"Content-Type": "application/json"}
ALLOWED = {**JSON, "Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def served() -> Iterator[ServedDaemon]:
    """One server for all tests, as starting one takes time."""
    daemon = FakeDaemon()
    with serving(daemon) as server:
        yield ServedDaemon(daemon, server)


@pytest.fixture
def served_daemon(served: ServedDaemon) -> ServedDaemon:
    """Return a fresh daemon that runs."""
    served.daemon.awake = True
    served.daemon.done.clear()
    served.daemon.refused.clear()
    return served


def ask_api(
    server: WebServer, path: str, method: str = "GET", body: object = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Status and text; a body that is neither bytes nor None goes as JSON."""
    where = urlsplit(server.address)
    assert where.hostname is not None
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=5)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        connection.request(method, path, data, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def post(served_daemon: ServedDaemon, path: str, body: object, headers: dict[str, str] = ALLOWED) -> tuple[int, str]:
    """POST and return the response, with its ``text``."""
    status, text = ask_api(served_daemon.server, path, "POST", body, headers)
    answer = json.loads(text)
    assert answer["ok"] is (status == 200)
    return status, answer["text"]


def test_status_is_one_object(served_daemon: ServedDaemon) -> None:
    """The status names version and model, and the health of each source and sink."""
    status, text = ask_api(served_daemon.server, "/api/v1/status")
    data = json.loads(text)
    assert status == 200
    assert (data["version"], data["model_id"], data["paused"]) == ("1.2", "0123456789ab", ["b"])
    assert data["sources"]["mqtt"]["queued"] == 3
    assert data["sinks"]["file"]["connected"] is False
    assert TOKEN not in text


def test_streams_are_a_list_with_a_limit(served_daemon: ServedDaemon) -> None:
    """Every stream is an object; there are at most ``limit``."""
    status, text = ask_api(served_daemon.server, "/api/v1/streams")
    assert status == 200
    assert json.loads(text) == [
        {"stream": "a", "time": "2026-03-01T00:00:00Z", "steps": 5, "status": "online", "dropped": 0, "last_drop": ""},
        {"stream": "b", "time": None, "steps": 0, "status": "paused", "dropped": 0, "last_drop": ""},
    ]
    assert len(json.loads(ask_api(served_daemon.server, "/api/v1/streams?limit=1")[1])) == 1


@pytest.mark.parametrize("limit", ["0", "-1", "x", "", "1e3", "100000", "9" * 5000, "%D9%A1"])
def test_an_invalid_limit_is_rejected(served_daemon: ServedDaemon, limit: str) -> None:
    """Only a number of a sensible size is accepted."""
    status, text = ask_api(served_daemon.server, f"/api/v1/streams?limit={limit}")
    assert status == 400
    assert "limit: expected" in text


def test_the_body_of_an_import_is_passed_on_unchanged(served_daemon: ServedDaemon) -> None:
    """Also if it is longer than a command may be."""
    state = {"stream": "a", "row": "A" * 100_000}
    status, text = ask_api(served_daemon.server, "/api/v1/import", "POST", state, ALLOWED)
    assert (status, json.loads(text)["text"]) == (200, "import done")
    assert served_daemon.daemon.done == [("import", None)]


def test_a_state_that_is_too_long_is_rejected(served_daemon: ServedDaemon) -> None:
    """The daemon never receives more than the maximum size of one stream."""
    status, text = ask_api(served_daemon.server, "/api/v1/import", "POST", {"row": "A" * 4_194_304}, ALLOWED)
    assert (status, json.loads(text)["text"]) == (413, "expected at most 4194304 bytes")
    assert not served_daemon.daemon.done


@pytest.mark.parametrize("path", [path for path in COMMANDS if not path.endswith("import")])
def test_a_command_is_executed(served_daemon: ServedDaemon, path: str) -> None:
    """Each command reaches the daemon, for one stream or all, and its result is returned."""
    action = path.rpartition("/")[2]
    status, text = ask_api(served_daemon.server, path, "POST", {"stream": "a"}, ALLOWED)
    assert (status, json.loads(text)) == (200, {"ok": True, "text": f"{action} done", "streams": 1})
    assert post(served_daemon, path, {"all": True}) == (200, f"{action} done")
    assert served_daemon.daemon.done == [(action, "a"), (action, None)]


@pytest.mark.parametrize("path", COMMANDS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_commands_need_post(served_daemon: ServedDaemon, path: str, method: str) -> None:
    """No other method changes anything, with any body."""
    status, _ = ask_api(served_daemon.server, path, method, {"all": True} if method != "HEAD" else None, ALLOWED)
    assert status == 405
    assert served_daemon.daemon.done == []


@pytest.mark.parametrize("path", ["/api/v1/status", "/api/v1/streams", "/api/v1/outputs"])
def test_the_other_routes_reject_post(served_daemon: ServedDaemon, path: str) -> None:
    """They accept GET and HEAD only."""
    assert ask_api(served_daemon.server, path, "POST", {"all": True}, ALLOWED)[0] == 405
    assert ask_api(served_daemon.server, path, "HEAD")[0] == 200


@pytest.mark.parametrize(
    "authorization",
    [None, "", TOKEN, "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer \xff"],
)
def test_a_wrong_token_is_rejected(served_daemon: ServedDaemon, authorization: str | None) -> None:
    """Without the exact token nothing is executed."""
    headers = JSON if authorization is None else {**JSON, "Authorization": authorization}
    status, text = post(served_daemon, "/api/v1/reset", {"all": True}, headers)
    assert status == 401
    assert "Authorization: Bearer TOKEN" in text
    assert served_daemon.daemon.done == []
    why = "no token" if authorization is None else "wrong token"
    assert served_daemon.daemon.refused == [("reset", f"{why} (from 127.0.0.1)")]


@pytest.mark.parametrize("authorization", ["Bearer ", "Bearer", f"Bearer {TOKEN}"])
def test_without_a_configured_token_commands_are_rejected(authorization: str) -> None:
    """Also with an empty one; the text says what is missing."""
    daemon = FakeDaemon(token="")
    with serving(daemon) as server:
        status, text = ask_api(server, "/api/v1/reset", "POST", {"all": True}, {**JSON, "Authorization": authorization})
    assert (status, json.loads(text)) == (
        403,
        {"ok": False, "text": "control.token_file is not set", "streams": 0},
    )
    assert daemon.done == []
    assert daemon.refused == [("reset", "control.token_file is not set (from 127.0.0.1)")]


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"", ALLOWED, 400),
        (b"{", ALLOWED, 400),
        (b"\xff", ALLOWED, 400),
        (b"[" * 4000, ALLOWED, 400),
        (b"null", ALLOWED, 400),
        ({}, ALLOWED, 400),
        ({"stream": "a", "all": True}, ALLOWED, 400),
        ({"all": False}, ALLOWED, 400),
        ({"all": True, "action": "pause"}, ALLOWED, 400),
        ({"stream": "a\n"}, ALLOWED, 400),
        ({"stream": "unheard of"}, ALLOWED, 404),
        (b"all=true", {**ALLOWED, "Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"all": True}, {**ALLOWED, "Content-Type": "text/plain"}, 415),
        ({"all": True}, {**ALLOWED, "Content-Type": "application/json; charset=utf-8"}, 200),
        (b'{"all":true}' + b" " * 4084, ALLOWED, 200),
        (b'{"all":true}' + b" " * 4085, ALLOWED, 413),
        (b" " * 60_000, ALLOWED, 413),
    ],
)
def test_a_body_is_read_strictly(
    served_daemon: ServedDaemon, body: object, headers: dict[str, str], expected: int
) -> None:
    """Only a small JSON object with the known keys is a command; everything else is reported and changes nothing.

    The server counts rejections that do not reach the daemon; the daemon counts its own.
    """
    status, text = post(served_daemon, "/api/v1/reset", body, headers)
    assert status == expected
    assert text
    assert len(served_daemon.daemon.done) == (expected == 200)
    assert served_daemon.daemon.refused == ([] if expected in (200, 404) else [("reset", f"{text} (from 127.0.0.1)")])


def test_rejections_are_reported_without_the_token(caplog: pytest.LogCaptureFixture) -> None:
    """Each is counted by its action; the log gets one line for many, without the token that was sent."""
    daemon = FakeDaemon()
    with serving(daemon) as server, caplog.at_level(logging.WARNING, "stream_gru.runtime.control.commands"):
        for path in COMMANDS:
            assert ask_api(server, path, "POST", {"all": True}, {**JSON, "Authorization": "Bearer guessed"})[0] == 401
    assert daemon.refused == [(str(action), "wrong token (from 127.0.0.1)") for action in Action]
    assert caplog.messages == ["commands: reset over HTTP rejected: wrong token (from 127.0.0.1)"]
    assert TOKEN not in caplog.text
    assert "guessed" not in caplog.text


@pytest.mark.parametrize("waits", [False, True])
def test_a_body_that_does_not_come_ends_quietly(
    waits: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A client that sends less than it announces gets no answer and causes no traceback, either side closing first."""
    monkeypatch.setattr(connection, "IDLE_S", 0.2 if waits else 20)
    daemon = FakeDaemon()
    head = "".join(f"{name}: {text}\r\n" for name, text in {"Host": "localhost", **ALLOWED}.items())
    with serving(daemon) as server:
        where = urlsplit(server.address)
        assert where.hostname is not None
        assert where.port is not None
        with socket.create_connection((where.hostname, where.port), timeout=5) as client:
            client.sendall(f"POST /api/v1/reset HTTP/1.1\r\n{head}Content-Length: 20\r\n\r\n{{".encode())
            if waits:
                assert client.recv(1000) == b""
        wait_for(lambda: bool(daemon.refused))
        monkeypatch.setattr(connection, "IDLE_S", 20)
        assert ask_api(server, "/-/healthy")[0] == 200
    assert daemon.refused == [("reset", "the client disconnected before the end of the body (from 127.0.0.1)")]
    assert daemon.done == []
    assert "Traceback" not in "".join(capfd.readouterr())


def test_a_busy_daemon_is_an_error(served_daemon: ServedDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that does not reply, and a full queue, give 503 in time; a late reply is ignored."""
    monkeypatch.setattr(api_module, "_RESULT_S", 0.1)
    served_daemon.daemon.awake = False
    status, text = post(served_daemon, "/api/v1/reset", {"all": True})
    assert (status, text) == (503, "no result within 0.1 s; the command may still be executed")
    while served_daemon.daemon.commands.put(Command(Action.RESET, "a", lambda _: None)):
        pass
    assert served_daemon.daemon.refused == []
    assert post(served_daemon, "/api/v1/reset", {"all": True}) == (503, "too many commands are waiting")
    assert served_daemon.daemon.refused == [("reset", "too many commands are waiting (from 127.0.0.1)")]
    served_daemon.daemon.awake = True
    wait_for(lambda: len(served_daemon.daemon.done) == 64)
    assert ask_api(served_daemon.server, "/-/healthy")[0] == 200


HOSTILE = ["evil.example", "evil.example:9723", "127.0.0.1.evil.example", "localhost.evil.example", "", "[evil]", "1"]


@pytest.mark.parametrize("host", HOSTILE)
@pytest.mark.parametrize("path", ["/api/v1/status", "/api/v1/outputs", "/", "/metricsx"])
def test_other_host_names_are_rejected(served_daemon: ServedDaemon, host: str, path: str) -> None:
    """A page whose name points to loopback reads nothing and commands nothing."""
    assert ask_api(served_daemon.server, path, headers={"Host": host})[0] == 403
    assert ask_api(served_daemon.server, "/api/v1/reset", "POST", {"all": True}, {**ALLOWED, "Host": host})[0] == 403
    assert served_daemon.daemon.done == []


@pytest.mark.parametrize("host", HOSTILE)
@pytest.mark.parametrize("path", ["/metrics", "/-/healthy", "/-/ready"])
def test_probes_accept_any_host_name(served_daemon: ServedDaemon, host: str, path: str) -> None:
    """Scrapers find the daemon by any name in their network."""
    assert ask_api(served_daemon.server, path, headers={"Host": host})[0] == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "10.1.2.3:80", "[::1]:9723", "[fe80::1]"])
def test_own_names_and_addresses_are_served(served_daemon: ServedDaemon, host: str) -> None:
    """Loopback names and numeric addresses are accepted."""
    assert ask_api(served_daemon.server, "/api/v1/status", headers={"Host": host})[0] == 200


def test_the_name_it_listens_on_is_served() -> None:
    """A server that listens on a name accepts that name."""
    with serving(FakeDaemon(), "localhost:0") as server:
        assert ask_api(server, "/api/v1/status", headers={"Host": "LocalHost:80"})[0] == 200


def test_without_an_api_there_are_only_probes() -> None:
    """A replay's server has metrics and probes and nothing else."""
    server = WebServer("127.0.0.1:0", CollectorRegistry(), lambda: (True, ""), lambda: (True, ""))
    server.open()
    try:
        assert [ask_api(server, path)[0] for path in ("/api/v1/status", "/api/v1/outputs", "/metrics")] == [
            404,
            404,
            200,
        ]
        assert ask_api(server, "/api/v1/reset", "POST", {"all": True}, ALLOWED)[0] == 404
    finally:
        server.close()
