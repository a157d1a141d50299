"""The real server on changed requests: an answer of a known kind or none, and no action without POST."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Self
from unittest.mock import patch
from urllib.parse import urlsplit

from stream_gru.runtime.http import limits as connection
from tests.support.fake_daemon import TOKEN, FakeDaemon, serving

_IDLE_S = 0.05
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
# 100: the server waits for a body; 503: eight clients receive outputs already.
_KNOWN = frozenset({100, 200, 400, 401, 403, 404, 405, 413, 415, 503})
_ENOUGH = 1_000_000


class _Complaints(logging.Handler):
    """Collects the error messages of the server."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.lines.append(self.format(record))


class HttpTarget:
    """A server with short timeouts."""

    words = (
        b"GET ", b"HEAD ", b"POST ", b"PUT ", b"CONNECT ", b"/metrics", b"/-/ready", b"/api/v1/reset",
        b"/api/v1/streams",
        b"/api/v1/outputs", b"?limit=", b"?stream=", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"\r\n\r\n",
        b"Host: localhost\r\n", b"Host: evil.example\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n",
        b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Expect: 100-continue\r\n",
        b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n", b"Authorization: Bearer x\r\n", b"5\r\nabcde\r\n",
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n", b"%2e%2e%2f", b"%00", b"%0d%0a", b"%ff", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    )  # fmt: skip

    def __enter__(self) -> Self:
        """Begin to serve."""
        with ExitStack() as stack:
            stack.enter_context(patch.object(connection, "IDLE_S", _IDLE_S))
            self._daemon, self._complaints = FakeDaemon(), _Complaints()
            server = stack.enter_context(serving(self._daemon))
            place = urlsplit(server.address)
            self._address = (place.hostname, place.port)
            for name in ("uvicorn.error", "asyncio"):
                logging.getLogger(name).addHandler(self._complaints)
                stack.callback(logging.getLogger(name).removeHandler, self._complaints)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._stack.close()

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """One connection; the pieces are sent one after the other."""
        self._daemon.done.clear()
        self._daemon.refused.clear()
        answer = self._exchange(pieces)
        assert not self._complaints.lines, self._complaints.lines
        request = b"".join(pieces)
        assert TOKEN.encode() not in answer
        assert not self._daemon.done or (b"POST" in request and TOKEN.encode() in request), self._daemon.done
        assert not any(TOKEN in why for _, why in self._daemon.refused)
        if not answer:
            return ["cut off"]
        found = [int(status) for status in _STATUS.findall(answer)]
        assert found, answer[:200]
        assert _STATUS.match(answer), answer[:200]
        assert set(found) <= _KNOWN, found
        return [str(found[-1])]

    def _exchange(self, pieces: list[bytes]) -> bytes:
        answer = b""
        with socket.create_connection(self._address, timeout=10) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for piece in pieces:
                    client.sendall(piece)
                while len(answer) < _ENOUGH and (got := client.recv(65_536)):
                    answer += got
                    if b"text/event-stream" in answer:
                        break
            except (ConnectionResetError, BrokenPipeError):
                pass
        return answer
