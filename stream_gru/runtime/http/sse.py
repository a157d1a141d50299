"""Outputs as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

The data of an event is one JSON row.  An event ``dropped`` contains the number of rows that this client was too slow to
receive.  A comment is sent while there are no rows, so that both sides detect a lost connection.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from starlette.types import Message, Receive, Scope, Send

from stream_gru.runtime.http.broadcast import Client, OutputBroadcaster

_PING_S = 10.0
_SEND_S = 5.0
_END_S = 0.5
# Rows of this interval are sent together, which saves thread switches.
_BATCH_S = 0.05
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Connection(Protocol):
    """The methods of `BoundedConnection` used here."""

    def keep(self) -> None:
        """Lift the time limit of the connection."""
        ...

    def abort(self) -> None:
        """Close the connection at once."""
        ...


class EventStream:
    """The response to one client, as an ASGI application: ends when the client leaves or stalls, or the outputs end."""

    def __init__(self, broadcaster: OutputBroadcaster, client: Client) -> None:
        self._broadcaster, self._client = broadcaster, client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until either side closes."""
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
                await asyncio.wait({leaving}, timeout=_END_S)  # the server must notice before this returns
        finally:
            self._broadcaster.unsubscribe(self._client)
            for task in (sending, leaving, ending):
                task.cancel()

    async def _send_all(self, send: Send) -> None:
        """Send all rows.  Raises TimeoutError when the client does not read."""
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await _send_body(send, b": outputs of stream_gru\n\n")
        while True:
            await self._client.wait(_PING_S)
            ended = self._client.ended.is_set()
            rows, dropped = self._client.take()
            await _send_body(send, _events(rows, dropped) or b": ping\n\n")
            if ended:
                break
            await asyncio.sleep(_BATCH_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_body(send: Send, body: bytes) -> None:
    message: Message = {"type": "http.response.body", "body": body, "more_body": True}
    async with asyncio.timeout(_SEND_S):
        await send(message)


async def _until_gone(receive: Receive) -> None:
    """Return when the client disconnects or sends unexpected data."""
    message = await receive()
    while message["type"] != "http.disconnect" and not message.get("body"):
        message = await receive()


def _events(rows: list[bytes], dropped: int) -> bytes:
    dropped_event = b'event: dropped\ndata: {"rows":%d}\n\n' % dropped if dropped else b""
    return dropped_event + b"".join([b"data: %b\n\n" % row for row in rows])
