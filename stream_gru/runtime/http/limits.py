"""Limits of the HTTP server: connections, time and work of clients, and the host names it accepts.

Connections: their number, their duration and their buffers are bounded, with one request each.  A slow or silent client
is disconnected after a few seconds.  Beyond the maximum number, the oldest connection is closed: a complete request is
answered long before that.  Exempt are clients that receive outputs (at most `broadcast.MAX_CLIENTS`) and those whose
command is being executed.

Host names: a hostile page can point its own host name to 127.0.0.1 and then read this server as its own origin (DNS
rebinding).  Such requests carry that name in ``Host``, so only known names and numeric addresses are accepted.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import h11
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

_T = TypeVar("_T")

MAX_CONNECTIONS = 128
"""Most open connections, without those just accepted or being closed."""
BACKLOG = 32
"""Connections accepted in one iteration of the event loop."""
QUEUE = 512
"""Length of the kernel's accept queue: clients beyond a shorter one would retry after a second."""
IDLE_S = 5.0
"""A connection without a complete response after this time is closed."""

# Kernel buffers of one connection, for sending and receiving.
_UNSENT_BYTES, _UNREAD_BYTES = 65_536, 16_384
# The head of a request may have four of these.
_CHUNK_BYTES = 4096
HEAD_BYTES = 4 * _CHUNK_BYTES

_LOOPBACK = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_REJECTED = "unknown host name: use an IP address or localhost\n"

_PAUSE_FACTOR = 4.0  # pause after a piece of work, in multiples of its duration
_MAX_KEYS = 8


def limit_buffers(listener: socket.socket) -> None:
    """Bound the kernel's buffers of all connections accepted from this socket; call it before ``listen``."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNREAD_BYTES)


class BoundedConnection(H11Protocol):
    """Closes itself after a time limit; applications find it as ``connection`` in the state of their request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit; close the oldest connection if there are too many."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._end = self.loop.call_later(IDLE_S, transport.abort)
        self._protected = False
        self.app_state = {**self.app_state, "connection": self}
        self._close_oldest()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, which would keep this object in memory."""
        self._end.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse in small chunks, so that a long head is detected before all of it arrives."""
        try:
            for at in range(0, len(data), _CHUNK_BYTES):
                if self.closing:
                    return
                super().data_received(data[at : at + _CHUNK_BYTES])
        except h11.LocalProtocolError:  # invalid data after the response: no second one is possible
            self.abort()

    def send_400_response(self, msg: str) -> None:
        """Reject invalid data; an application that still handles a request sees a disconnect."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.abort()
                return
        super().send_400_response(msg)

    def keep(self) -> None:
        """Lift the time limit."""
        self.protect()
        self._end.cancel()

    def protect(self) -> None:
        """Exempt this connection from being closed for a newer one."""
        self._protected = True

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    @property
    def closing(self) -> bool:
        """Whether the connection is closing."""
        return self.transport.is_closing()

    def unsent_bytes(self) -> int:
        """Return the bytes that all clients together have not received yet."""
        return sum(one.transport.get_write_buffer_size() for one in self._others())

    def _close_oldest(self) -> None:
        others = [one for one in self._others() if one is not self and not one._protected and not one.closing]
        if len(others) >= MAX_CONNECTIONS:
            min(others, key=lambda one: one._since).abort()

    def _others(self) -> list[BoundedConnection]:
        return [cast(BoundedConnection, one) for one in self.connections]


class HostGuard:
    """Responds 403 to requests for names other than ``host`` and those of loopback, except to probes."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = _LOOPBACK | {host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward or reject a request."""
        if scope["type"] == "http" and not _is_probe(scope["path"]) and not self._is_known(Headers(scope=scope)):
            rejection = PlainTextResponse(_REJECTED, 403)
            await rejection(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_known(self, headers: Headers) -> bool:
        name = _name(headers.get("host", "").strip().lower())
        return name in self._names or _is_address(name)


def is_loopback(address: str) -> bool:
    """Return whether an IP address is reachable from this machine only."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_probe(path: str) -> bool:
    return path == "/metrics" or path.startswith("/-/")


_HOST = re.compile(r"(?:\[([0-9a-f:.%]+)\]|([^\s:@\[\]/]+))(?::\d{1,5})?")


def _name(host: str) -> str:
    """Return the host without port and brackets; empty where the header is none, such as ``[::1].evil.example``."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]) if found else ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class CostCache(Generic[_T]):
    """Caches a result for four times as long as computing it took.

    Used in one thread only.  ``clock``: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._cached: dict[str, tuple[float, _T]] = {}

    def get(self, key: str, compute: Callable[[], _T]) -> _T:
        """Return the cached result for ``key``, or compute it."""
        start_s = self._clock()
        until_s, found = self._cached.get(key, (start_s, None))
        if found is None or start_s >= until_s:
            found = compute()
            end_s = self._clock()
            if len(self._cached) >= _MAX_KEYS:
                self._cached.clear()
            self._cached[key] = end_s + _PAUSE_FACTOR * (end_s - start_s), found
        return found


class FairLimiter:
    """Runs one piece of work at a time, with a pause of four times its duration after each."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._free_s = 0.0

    async def run(self, work: Callable[[], _T]) -> _T:
        """Wait in turn, then run ``work`` and return its result."""
        async with self._lock:
            await asyncio.sleep(max(0.0, self._free_s - time.monotonic()))
            start_s = time.monotonic()
            result = work()
            end_s = time.monotonic()
            self._free_s = end_s + _PAUSE_FACTOR * (end_s - start_s)
        return result
