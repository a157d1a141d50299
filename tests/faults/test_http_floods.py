"""Hostile clients: other clients are served, and the process stays small."""

from __future__ import annotations

import socket
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from stream_gru.runtime.http.limits import BACKLOG, MAX_CONNECTIONS
from tests.support.fake_daemon import TOKEN, WebProcess, web_process
from tests.support.waiting import wait_for

pytestmark = pytest.mark.servers

HELD = 200  # sockets per attacker: more than the server accepts
AT_ONCE = 20
ASKED = 12
COMMAND = (
    f"POST /api/v1/reset HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    "Content-Type: application/json\r\n"
).encode()
GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"


def _tls_hello() -> bytes:
    """The first bytes of a TLS handshake."""
    out = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), out, server_hostname="localhost").do_handshake()
    return out.read()


# What an attacker sends first, and then repeatedly.
ATTACKS: dict[str, tuple[bytes, bytes]] = {
    "says nothing": (b"", b""),
    "a head byte by byte": (b"GET /metrics HTTP/1.1\r\nX: ", b"x"),
    "a header without end": (b"GET /metrics HTTP/1.1\r\nX: ", b"x" * 65_536),
    "headers without end": (b"GET /metrics HTTP/1.1\r\n", b"X: y\r\n" * 1000),
    "an address without end": (b"GET /", b"%2e" * 20_000),
    "a body byte by byte": (COMMAND + b"Content-Length: 4000\r\n\r\n", b" "),
    "a body without end": (COMMAND + b"Transfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b" " * 4096 + b"\r\n"),
    "a body for a GET": (b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n", b"x" * 65_536),
    "many requests at once": (b"", GET % b"/nothing" * 1000),
    "metrics, not read": (GET % b"/metrics", b""),
    "long lists, not read": (GET % b"/api/v1/streams?limit=99999", b""),
    "outputs, not read": (GET % b"/api/v1/outputs", b""),
    "outputs, and sends": (GET % b"/api/v1/outputs", b"x" * 65_536),
    "outputs, and sends broken chunks": (
        b"GET /api/v1/outputs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"nonsense\r\n",
    ),
    "TLS": (_tls_hello(), b""),
    "nonsense": (b"\x00\xff\r\n\r\n", b"\x00\r\n"),
    "upgrades": (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", b""),
}  # fmt: skip


class Client:
    """One connection of an attacker; it never reads."""

    def __init__(self, address: tuple[str, int], begin: bytes, then: bytes) -> None:
        self._unsent, self._then = begin, then
        self._socket = socket.socket()
        self._socket.setblocking(False)
        with suppress(BlockingIOError):
            self._socket.connect(address)

    def go_on(self) -> bool:
        """Send more data; return whether the connection is still open."""
        try:
            sent = self._socket.send(self._unsent or self._then)
            self._unsent = self._unsent[sent:]
            return self._socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class Attacker:
    """Holds many connections on its own thread; replaces closed ones and some of the others."""

    def __init__(self, flooded: WebProcess, begin: bytes, then: bytes) -> None:
        self._address, self._begin, self._then = (flooded.host, flooded.port), begin, then
        self._clients: list[Client] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.connects = 0

    def __enter__(self) -> Attacker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for one in self._clients:
            one.close()

    def _run(self) -> None:
        while not self._stop.wait(0.01):  # leave CPU time for the other threads
            missing = min(HELD - len(self._clients), AT_ONCE)
            self._clients += [Client(self._address, self._begin, self._then) for _ in range(missing)]
            self.connects += missing
            stand = [one.go_on() for one in self._clients]
            gone = [one for one, stands in zip(self._clients, stand, strict=True) if not stands]
            for one in [*gone, *self._clients[:1]]:
                one.close()
            self._clients = [one for one in self._clients[1:] if one not in gone]


@pytest.fixture(scope="module")
def flooded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebProcess]:
    """One server for all attacks, so that resources leaked by one attack show at the end."""
    with web_process(tmp_path_factory.mktemp("web")) as running:
        yield running


def polite_status(flooded: WebProcess, path: str = "/metrics") -> int:
    """Return the status that a well-behaved client gets."""
    url = f"http://{flooded.host}:{flooded.port}{path}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        answer.read()
        return int(answer.status)


@contextmanager
def calm(flooded: WebProcess) -> Iterator[None]:
    """At the end all connections are closed, and standard error has only lines about rejected commands."""
    before = flooded.descriptors
    yield
    wait_for(lambda: flooded.descriptors <= before, what="the last connection to be cut off")
    output = flooded.log.read_text()
    assert all("commands: reset over HTTP rejected" in line for line in output.splitlines()), output
    assert output.count("\n") < 10
    assert TOKEN not in output


@pytest.mark.parametrize("name", ATTACKS)
def test_other_clients_are_served_during_a_flood(flooded: WebProcess, name: str) -> None:
    """With hundreds of bad connections each metrics request succeeds, with few descriptors, threads and memory."""
    polite_status(flooded)
    threads = flooded.fact("Threads")
    with calm(flooded), Attacker(flooded, *ATTACKS[name]) as attacker:
        wait_for(lambda: attacker.connects >= HELD)
        most = 0
        for _ in range(ASKED):
            assert polite_status(flooded) == 200
            most = max(most, flooded.descriptors)
        assert most < MAX_CONNECTIONS + 4 * BACKLOG + 40
        assert flooded.fact("Threads") == threads
        assert flooded.fact("VmHWM") < 250_000
