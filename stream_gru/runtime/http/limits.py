"""A connection of the server: one of a bounded number, for a few seconds and one request.

Slow, silent and greedy clients are cut off.  So many that the places run out push out each other, the oldest first: a
request that is small and whole is answered long before its turn comes.  Only those who listen to outputs (they are few,
`feed.MAX_CLIENTS`) and those whose command is being carried out are spared.
"""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import h11
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
