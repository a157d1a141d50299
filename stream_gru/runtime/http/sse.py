"""Outputs as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

An event's data is one JSON row.  An event ``dropped`` says how many rows this client was too slow for; a comment is
sent while it is quiet, so that both sides notice when the other one is gone.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from stream_gru.runtime.http.broadcast import Client, OutputBroadcaster

_PING_S = 10.0
_SEND_S = 5.0
_END_S = 0.5
# Rows of so long are sent together: fewer switches between the threads.
_GATHER_S = 0.05
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Connection(Protocol):
    """What the server's connection lets its longest guest do."""

    def keep(self) -> None:
        """Let the connection live longer than a request may take."""
        ...

    def abort(self) -> None:
        """Cut it off."""
        ...


class EventStream:
    """The answer to one client, as an ASGI application: runs until the client leaves, stalls, or the feed ends."""

    def __init__(self, feed: OutputBroadcaster, client: Client) -> None:
        self._feed, self._client = feed, client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stay until one side ends it."""
        connection: Connection = scope["state"]["connection"]
        connection.keep()
        sending = asyncio.create_task(self._send_all(send))
        leaving = asyncio.create_task(_until_gone(receive))
        ending = asyncio.create_task(self._client.ended.wait())
        try:
            await asyncio.wait({sending, leaving, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not leaving.done():
                await asyncio.wait({sending, leaving}, timeout=_END_S, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() or sending.exception() is not None:
                connection.abort()
                await asyncio.wait({leaving}, timeout=_END_S)  # the server shall know it before this returns
        finally:
            self._feed.leave(self._client)
            for task in (sending, leaving, ending):
                task.cancel()

    async def _send_all(self, send: Send) -> None:
        """Raises TimeoutError when the client does not read."""
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await _send_body(send, b": outputs of stream_gru\n\n")
        while True:
            await self._client.wait(_PING_S)
            ended = self._client.ended.is_set()
            rows, dropped = self._client.take()
            await _send_body(send, _events(rows, dropped) or b": ping\n\n")
            if ended:
                break
            await asyncio.sleep(_GATHER_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_body(send: Send, body: bytes) -> None:
    message: Message = {"type": "http.response.body", "body": body, "more_body": True}
    async with asyncio.timeout(_SEND_S):
        await send(message)


async def _until_gone(receive: Receive) -> None:
    """Until the client leaves, or sends what nobody asked for."""
    message = await receive()
    while message["type"] != "http.disconnect" and not message.get("body"):
        message = await receive()


def _events(rows: list[bytes], dropped: int) -> bytes:
    told = b'event: dropped\ndata: {"rows":%d}\n\n' % dropped if dropped else b""
    return told + b"".join([b"data: %b\n\n" % row for row in rows])
