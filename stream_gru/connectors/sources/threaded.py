"""A source that a thread of its own reads into a bounded queue, and opens again when it is lost."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from stream_gru.config.connector import ignore
from stream_gru.core.errors import EndOfInput, SourceUnavailable
from stream_gru.core.protocols import Source
from stream_gru.core.types import Position, RawMessage, SourceHealth

log = logging.getLogger(__name__)

_POLL_S = 0.2
_POLL_MESSAGES = 1024
_FIRST_PAUSE_S = 0.5
_CLOSE_S = 5.0


class ThreadedSource:
    """Reads ``source`` in a thread into a bounded queue; a full queue makes the thread wait.

    A source that is not available is opened again after a delay that doubles up to ``reconnect_max_delay_s``, with
    jitter, and starts over once messages arrive.  Without ``retry`` `poll` raises SourceUnavailable instead.
    ``wakeup`` is called after a message and at the end.  ``wait(s)`` sleeps and returns True when the source was
    closed.
    """

    def __init__(
        self,
        source: Source,
        *,
        name: str,
        queue_size: int,
        queue_bytes: int,
        reconnect_max_delay_s: float,
        wakeup: Callable[[], None] | None = None,
        wait: Callable[[float], bool] | None = None,
        retry: bool = True,
    ) -> None:
        self._source, self._name, self._max_delay_s = source, name, reconnect_max_delay_s
        self._wakeup, self._wait, self._retry = wakeup or ignore, wait, retry
        self._bounds = queue_size, queue_bytes
        self._queue = MessageQueue(*self._bounds, self._wakeup)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._position: Position | None = None
        self._outcome: BaseException | None = None
        self._connected = self._was_connected = False
        self._lost: str | None = None
        self._reconnects = 0
        self._pause_s = 0.0

    def open(self, position: Position | None) -> None:
        """Start the thread, which opens the source after ``position``; its errors are raised by `poll`.

        Raises SourceUnavailable only while the thread of the last `close` is still running.
        """
        self.close()
        if self._thread is not None:
            raise SourceUnavailable(f"{self._name}: previous reader thread is still stopping")
        self._queue = MessageQueue(*self._bounds, self._wakeup)
        self._stopping = threading.Event()
        self._position, self._outcome = position, None
        self._thread = threading.Thread(target=self._run, name=f"source {self._name}", daemon=True)
        self._thread.start()

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return queued messages.  Once the queue is empty, raises what ended the thread: EndOfInput or its error."""
        outcome = self._outcome  # read first: everything before it is in the queue
        messages = self._queue.get(limit, 0.0 if outcome is not None else timeout_s)
        if isinstance(outcome, EndOfInput) and not messages:
            raise EndOfInput  # a new one each time: a raised exception grows
        if outcome is not None and not messages:
            raise outcome
        return messages

    def commit(self, position: Position) -> None:
        """Pass on to the source."""
        self._source.commit(position)

    def close(self) -> None:
        """Stop the thread, which closes the source; waits up to 5 s for it."""
        if self._thread is None:
            return
        self._stopping.set()
        self._queue.close()
        self._thread.join(_CLOSE_S)
        if self._thread.is_alive():
            log.warning("%s: the reader thread is still running after %g s", self._name, _CLOSE_S)
        else:
            self._thread = None

    def health(self) -> SourceHealth:
        """The health of the source, with the queue and the number of reconnects."""
        inner = self._source.health()
        return replace(
            inner,
            connected=self._connected and inner.connected,
            queued=inner.queued + len(self._queue),
            queued_bytes=inner.queued_bytes + self._queue.nbytes,
            reconnects=inner.reconnects + self._reconnects,
        )

    def _run(self) -> None:
        """The thread: read until closed, the end, or an error that `poll` raises."""
        try:
            while not self._stopping.is_set():
                try:
                    self._read()
                except SourceUnavailable as error:
                    if not self._retry:
                        raise
                    self._log_lost(error)
                    if self._sleep():
                        break
        except BaseException as error:  # raised by `poll`
            self._outcome = error
        finally:
            self._connected = False
            try:
                self._source.close()
            except Exception as error:
                self._outcome = self._outcome or error
            self._wakeup()

    def _read(self) -> None:
        """Open the source and move its messages into the queue, until it is lost or this is closed."""
        closing = self._stopping.is_set
        self._source.open(self._position)
        self._log_available()
        while not closing():
            for message in self._source.poll(_POLL_MESSAGES, _POLL_S):
                named = message if message.source else replace(message, source=self._name)
                if not self._queue.put(named, closing):
                    return
                self._position = message.position or self._position
                self._pause_s = 0.0

    def _log_lost(self, error: SourceUnavailable) -> None:
        self._source.close()
        self._connected = False
        if str(error) != self._lost:
            log.warning("%s: not available, retrying: %s", self._name, error)
        self._lost = str(error)

    def _log_available(self) -> None:
        self._connected = True
        if self._lost is None:
            self._was_connected = True
            return
        self._reconnects += self._was_connected
        self._was_connected = True
        log.info("%s: available again", self._name)
        self._lost = None

    def _sleep(self) -> bool:
        """Pause before the next attempt; True when closed meanwhile."""
        self._pause_s = min(self._max_delay_s, self._pause_s * 2 or _FIRST_PAUSE_S)
        wait = self._wait or self._stopping.wait
        return wait(self._pause_s * random.uniform(0.5, 1.0)) or self._stopping.is_set()  # noqa: S311 - no secret


_SLICE_S = 0.1
POLL_BYTES = 262_144
"""Payload that a poll returns at most, but for the last message."""


class MessageQueue:
    """Messages in the order of their arrival; `put` waits while it is full, so that nothing is dropped.

    ``on_put`` is called after each message, outside the lock, by the thread that put it.
    """

    def __init__(self, max_messages: int, max_bytes: int, on_put: Callable[[], None] | None = None) -> None:
        self._max_messages, self._max_bytes, self._on_put = max_messages, max_bytes, on_put
        self._changed = threading.Condition()
        self._messages: deque[RawMessage] = deque()
        self._bytes = 0
        self._closed = False

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def nbytes(self) -> int:
        """Bytes of the queued payloads."""
        return self._bytes

    def has_room(self, size: int) -> bool:
        """Whether a message of ``size`` bytes fits; an empty queue takes any."""
        return not self._messages or (
            len(self._messages) < self._max_messages and self._bytes + size <= self._max_bytes
        )

    def put(self, message: RawMessage, closing: Callable[[], bool]) -> bool:
        """Append a message, waiting for room until ``closing()`` is true; return whether it was appended."""
        size = len(message.payload)
        with self._changed:
            while not self._closed and not self.has_room(size):
                if closing():
                    return False
                self._changed.wait(_SLICE_S)
            if self._closed:
                return False
            self._messages.append(message)
            self._bytes += size
            self._changed.notify_all()
        if self._on_put is not None:
            self._on_put()
        return True

    def get(self, limit: int, timeout_s: float) -> list[RawMessage]:
        """Take at most ``limit`` messages of `POLL_BYTES` together, or one larger one; waits for the first one.

        Returns ``[]`` when none comes in time or the queue is closed.
        """
        taken: list[RawMessage] = []
        with self._changed:
            self._changed.wait_for(lambda: bool(self._messages) or self._closed, timeout_s)
            size = 0
            while self._messages and len(taken) < limit and size < POLL_BYTES:
                taken.append(self._messages.popleft())
                size += len(taken[-1].payload)
            if taken:
                self._bytes -= size
                self._changed.notify_all()
        return taken

    def close(self) -> None:
        """Accept no more and wake all waiting threads; queued messages can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
