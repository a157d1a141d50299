"""Limits of the HTTP server: connections, time and work of clients, and the host names it answers to.

The server keeps a bounded number of connections, each for a few seconds and one request.  Slow, idle and greedy clients
are disconnected.  When all places are taken, the oldest connection is closed: a small, complete request is answered
long before that.  Event streams (at most `broadcast.MAX_CLIENTS`) and running commands are spared.

A page of a hostile site can point its own name to 127.0.0.1 and read what is served there (DNS rebinding).  Its
requests carry that name in ``Host``, so unknown names are rejected; a numeric address cannot be such a name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable
from typing import Generic, TypeVar, cast

import h11
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 128
"""Open at a time, besides those that were accepted and not looked at yet, or cut off and not closed yet."""
BACKLOG = 32
"""Accepted at once."""
QUEUE = 512
"""The kernel lets so many wait to be accepted: who came too late for a shorter queue would try again after a second."""
IDLE_S = 5.0
"""A connection that has not got its whole answer by then is cut off."""

# What the kernel holds for one connection: of what its client does not read, and of what we have not read yet.
_UNSENT_BYTES, _UNREAD_BYTES = 65_536, 16_384
# A request's head ends within four of these, or it is refused.
_PART_BYTES = 4096
HEAD_BYTES = 4 * _PART_BYTES


def limit_buffers(listener: socket.socket) -> None:
    """Bound what the kernel holds for each connection that will come from this socket; before it listens."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNSENT_BYTES)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _UNREAD_BYTES)


class BoundedConnection(H11Protocol):
    """Cuts itself off in time; the application finds it in its request's state, as ``connection``."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count the time, and make room."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._end = self.loop.call_later(IDLE_S, transport.abort)
        self._spared = False
        self.app_state = {**self.app_state, "connection": self}
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the time: a timer that waits would hold all of this in memory."""
        self._end.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse in small parts, so that a head is measured before it is there."""
        try:
            for at in range(0, len(data), _PART_BYTES):
                if self.gone:
                    return
                super().data_received(data[at : at + _PART_BYTES])
        except h11.LocalProtocolError:  # nonsense after an answer: no other one can be given
            self.abort()

    def send_400_response(self, msg: str) -> None:
        """Refuse nonsense; who is still at work on a request learns that nobody waits for the answer."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.abort()
                return
        super().send_400_response(msg)

    def keep(self) -> None:
        """Let this connection live on."""
        self.spare()
        self._end.cancel()

    def spare(self) -> None:
        """Let it have its time, whoever else comes."""
        self._spared = True

    def abort(self) -> None:
        """Cut it off."""
        self.transport.abort()

    @property
    def gone(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self.transport.is_closing()

    def unsent_bytes(self) -> int:
        """What all clients together have not taken yet."""
        return sum(one.transport.get_write_buffer_size() for one in self._others())

    def _make_room(self) -> None:
        others = [one for one in self._others() if one is not self and not one._spared and not one.gone]
        if len(others) >= MAX_CONNECTIONS:
            min(others, key=lambda one: one._since).abort()

    def _others(self) -> list[BoundedConnection]:
        return [cast(BoundedConnection, one) for one in self.connections]


_LOOPBACK = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
_REFUSED = "this name is not served: use an IP address or localhost\n"


class HostGuard:
    """Answers 403 to requests for other names than those of loopback and ``host``; probes are let through."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = _LOOPBACK | {host.lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "http" and not _is_probe(scope["path"]) and not self._ours(Headers(scope=scope)):
            refusal = PlainTextResponse(_REFUSED, 403)
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _ours(self, headers: Headers) -> bool:
        name = _name(headers.get("host", "").strip().lower())
        return name in self._names or _is_address(name)


def is_loopback(address: str) -> bool:
    """Whether an IP address is reached from this machine only."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_probe(path: str) -> bool:
    return path == "/metrics" or path.startswith("/-/")


def _name(host: str) -> str:
    """The host without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


_T = TypeVar("_T")
_REST = 4.0
_KINDS = 8


class CostCache(Generic[_T]):
    """Remembers what was made for four times as long as that took: a few milliseconds for what is made quickly.

    Used in one thread only.  ``clock``: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made: dict[str, tuple[float, _T]] = {}

    def get(self, kind: str, make: Callable[[], _T]) -> _T:
        """What was made of this kind a moment ago, or else now."""
        begin_s = self._clock()
        until_s, found = self._made.get(kind, (begin_s, None))
        if found is None or begin_s >= until_s:
            found = make()
            end_s = self._clock()
            if len(self._made) >= _KINDS:
                self._made.clear()
            self._made[kind] = end_s + _REST * (end_s - begin_s), found
        return found


class FairLimiter:
    """One after the other, with a rest of four times the work after each."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._free_s = 0.0

    async def do(self, make: Callable[[], _T]) -> _T:
        """Wait for our turn, then make it."""
        async with self._lock:
            await asyncio.sleep(max(0.0, self._free_s - time.monotonic()))
            begin_s = time.monotonic()
            made = make()
            end_s = time.monotonic()
            self._free_s = end_s + _REST * (end_s - begin_s)
        return made
