"""A queue of messages between the thread that receives them and the loop: bounded by count and by bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from stream_gru.core.types import RawMessage

_SLICE_S = 0.1


class MessageQueue:
    """Messages in the order of their arrival; whoever puts waits while it is full, so that nothing is dropped.

    ``on_put`` is called after each message, outside the lock, by the thread that put it: a bell for the loop.
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
        """Size of the payloads that wait."""
        return self._bytes

    def has_room(self, size: int) -> bool:
        """Whether a message of ``size`` bytes would not have to wait; an empty queue takes any."""
        return not self._messages or (
            len(self._messages) < self._max_messages and self._bytes + size <= self._max_bytes
        )

    def put(self, message: RawMessage, closing: Callable[[], bool]) -> bool:
        """Append a message, waiting for room until ``closing`` says stop; return whether it was taken."""
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
        """Take at most ``limit`` messages, waiting for the first one; ``[]`` when none comes or the queue is closed."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._messages) or self._closed, timeout_s)
            taken = [self._messages.popleft() for _ in range(min(limit, len(self._messages)))]
            if taken:
                self._bytes -= sum(len(message.payload) for message in taken)
                self._changed.notify_all()
        return taken

    def close(self) -> None:
        """Take no more and wake everyone who waits; what is in the queue can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
