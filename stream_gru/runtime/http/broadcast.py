"""Outputs for HTTP clients: a short queue for each of a few clients.

    daemon's loop ──▶ OutputBroadcaster.write ──▶ Client.put (encoded rows) ┄┄ wakes ┄┄▶ Client.take ──▶ sse.py

Nobody waits for a client: the oldest rows of a full queue are dropped, and the client is told how many.  What a batch
holds beyond the length of a queue is not even encoded.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from stream_gru.connectors.sinks.encode_json import JsonEncoder
from stream_gru.connectors.sinks.encoders import encode_once
from stream_gru.core.types import I64, PredictionBatch

MAX_CLIENTS = 8
QUEUE_ROWS = 256
_QUEUE_BYTES = 1_048_576


class Client:
    """One who listens: to all streams, or to ``stream``.  Made, awaited and taken from in ``loop``'s thread only."""

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
        """Leave encoded rows, and say how many before them were not encoded; return how many were dropped in all."""
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
        """Return the rows that wait, and how many were dropped since the last time."""
        with self._lock:
            rows, dropped = list(self._rows), self._dropped
            self._rows.clear()
            self._bytes = self._dropped = 0
            self._woken = False
            self._ready.clear()
        return rows, dropped

    async def wait(self, timeout_s: float) -> None:
        """Sleep until there is something to take, or the time is over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), timeout_s)

    def end(self) -> None:
        """Say that nothing more will come; from any thread."""
        self._call(self.ended.set)
        self._call(self._ready.set)

    def _call(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has stopped, nobody listens
            self._loop.call_soon_threadsafe(call)


class OutputBroadcaster:
    """Hands rows as JSON to its clients; without any, `write` costs next to nothing.

    ``dropped``: rows that clients were too slow for.
    """

    def __init__(self) -> None:
        self._encoder = JsonEncoder()
        self._clients: tuple[Client, ...] = ()  # replaced in the web thread, read in that of the daemon
        self._closed = False
        self.dropped = 0

    def write(self, batch: PredictionBatch) -> None:
        """Hand the newest rows to each client that wants them."""
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
        """End what the clients listen to, also those who come later; may be called twice."""
        self._closed = True
        self.dismiss()

    def dismiss(self) -> None:
        """End what the clients of now listen to: their server stops, the feed may go on behind another one."""
        for client in self._clients:
            client.end()

    def subscribe(self, stream: str | None) -> Client | None:
        """Let one more client listen; None when there are eight.  Called in the web thread, within its loop."""
        if len(self._clients) >= MAX_CLIENTS:
            return None
        client = Client(asyncio.get_running_loop(), stream)
        self._clients = (*self._clients, client)
        if self._closed:
            client.end()
        return client

    def leave(self, client: Client) -> None:
        """Forget a client.  Called in the web thread."""
        self._clients = tuple(one for one in self._clients if one is not client)

    def _encode(self, batch: PredictionBatch, stream: str | None) -> tuple[list[bytes], int]:
        """The newest rows of a stream, or of all, as many as a queue holds; and how many were left out."""
        if stream is None:
            chosen: I64 = np.arange(max(0, len(batch) - QUEUE_ROWS), len(batch))
            skipped = len(batch) - len(chosen)
        elif stream in batch.stream_names:
            found = np.flatnonzero(batch.stream_index == batch.stream_names.index(stream))
            chosen, skipped = found[-QUEUE_ROWS:], max(0, len(found) - QUEUE_ROWS)
        else:
            return [], 0
        part = batch if len(chosen) == len(batch) else batch.take(chosen)
        return encode_once(self._encoder, part).split(b"\n")[:-1], skipped
