"""Distributes outputs to HTTP clients: a short queue for each of a few clients.

    daemon's loop ──▶ OutputBroadcaster.write ──▶ Client.put (encoded rows) ┄┄ wakes ┄┄▶ Client.take ──▶ EventStream

The loop never waits for a client: a full queue drops its oldest rows, and the client receives their number.  Rows of a
batch beyond the length of a queue are not encoded.

Events follow https://html.spec.whatwg.org/multipage/server-sent-events.html: the data of an event is one JSON row, the
event ``dropped`` contains the number of rows that this client was too slow for.  A comment is sent while there are no
rows, so that both sides detect a lost connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import numpy as np
from starlette.types import Message, Receive, Scope, Send

from stream_gru.connectors.sinks.encoders import JsonEncoder, encode_once
from stream_gru.core.types import I64, PredictionBatch

MAX_CLIENTS = 8
QUEUE_ROWS = 256
_QUEUE_BYTES = 1_048_576


class Client:
    """Queue of one client, for all streams or one ``stream``; only ``loop``'s thread creates and empties it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stream: str | None) -> None:
        self.stream = stream
        self.ended = asyncio.Event()
        self._loop = loop
        self._ready = asyncio.Event()
        self._lock = threading.Lock()
        self._rows: deque[bytes] = deque()
        self._bytes = self._dropped = 0
        self._woken = False

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, rows: list[bytes], skipped: int) -> int:
        """Add encoded rows, after ``skipped`` rows that were not encoded; return how many rows were dropped in all."""
        with self._lock:
            self._rows.extend(rows)
            self._bytes += sum(map(len, rows))
            dropped = skipped
            while len(self._rows) > QUEUE_ROWS or (self._bytes > _QUEUE_BYTES and len(self._rows) > 1):
                self._bytes -= len(self._rows.popleft())
                dropped += 1
            self._dropped += dropped
            wake, self._woken = not self._woken, True
        if wake:
            self._call(self._ready.set)
        return dropped

    def take(self) -> tuple[list[bytes], int]:
        """Remove and return all rows, and the number of rows dropped since the last call."""
        with self._lock:
            rows, dropped = list(self._rows), self._dropped
            self._rows.clear()
            self._bytes = self._dropped = 0
            self._woken = False
            self._ready.clear()
        return rows, dropped

    async def wait(self, timeout_s: float) -> None:
        """Wait until there are rows, at most ``timeout_s``."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), timeout_s)

    def end(self) -> None:
        """Signal that no more rows will come; may be called from any thread."""
        self._call(self.ended.set)
        self._call(self._ready.set)

    def _call(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(call)


class OutputBroadcaster:
    """Sends outputs as JSON to the connected clients; without clients `write` costs almost nothing.

    ``dropped``: rows that clients were too slow to receive.
    """

    def __init__(self) -> None:
        self._encoder = JsonEncoder()
        self._clients: tuple[Client, ...] = ()  # replaced by the server's thread, read by the loop's
        self._closed = False
        self.dropped = 0

    def write(self, batch: PredictionBatch) -> None:
        """Queue the newest rows for each client that subscribes to their stream."""
        clients = self._clients
        if not clients or not len(batch):
            return
        encoded: dict[str | None, tuple[list[bytes], int]] = {}
        for client in clients:
            if client.stream not in encoded:
                encoded[client.stream] = self._encode(batch, client.stream)
            rows, skipped = encoded[client.stream]
            if rows:
                self.dropped += client.put(rows, skipped)

    def close(self) -> None:
        """Disconnect all clients, also future ones; may be called twice."""
        self._closed = True
        self.disconnect_all()

    def disconnect_all(self) -> None:
        """Disconnect the current clients: their server stops, another one may use this broadcaster."""
        for client in self._clients:
            client.end()

    def subscribe(self, stream: str | None) -> Client | None:
        """Add a client; return None if there are `MAX_CLIENTS`.  Called within the server's event loop."""
        if len(self._clients) >= MAX_CLIENTS:
            return None
        client = Client(asyncio.get_running_loop(), stream)
        self._clients = (*self._clients, client)
        if self._closed:
            client.end()
        return client

    def unsubscribe(self, client: Client) -> None:
        """Remove a client.  Called in the server's thread."""
        self._clients = tuple(one for one in self._clients if one is not client)

    def _encode(self, batch: PredictionBatch, stream: str | None) -> tuple[list[bytes], int]:
        """Return the newest rows of a stream, or of all, as many as a queue holds, and how many were skipped."""
        if stream is None:
            selected: I64 = np.arange(max(0, len(batch) - QUEUE_ROWS), len(batch))
            skipped = len(batch) - len(selected)
        elif stream in batch.stream_names:
            found = np.flatnonzero(batch.stream_index == batch.stream_names.index(stream))
            selected, skipped = found[-QUEUE_ROWS:], max(0, len(found) - QUEUE_ROWS)
        else:
            return [], 0
        part = batch if len(selected) == len(batch) else batch.take(selected)
        return encode_once(self._encoder, part).split(b"\n")[:-1], skipped


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
