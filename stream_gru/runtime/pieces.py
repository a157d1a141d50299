"""Pieces: what was read is processed in parts of bounded size, or at the speed of its recording.

A message can hold one record or a hundred thousand, so a number of messages bounds neither memory nor time.  Messages
are decoded in groups of bounded size, and their rows are processed ``batch_rows`` at a time.  Between two pieces the
loop shows that it is alive, commits, carries out commands and waits for sinks.

`MessageProgress` makes progress inside a message durable.  Its peer delivers an unacknowledged message again from its
beginning; the rows that a commit covers are then skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from stream_gru.core.keyed_state import KeyedState
from stream_gru.core.timestamps import LIMIT_NS
from stream_gru.core.types import NS_PER_S, RawMessage, SampleBatch

_TICK_S = 0.05
# Longer pauses in the recording are skipped.
_MAX_PAUSE_S = 5.0
_STEP_BACK_S = 60


GROUP_BYTES = 16_384
"""Payload that is decoded at a time, unless a single message has more: its rows are at least two bytes long."""


def groups(messages: Sequence[RawMessage], alone: Callable[[RawMessage], bool]) -> Iterator[Sequence[RawMessage]]:
    """Cut messages into groups of at most `GROUP_BYTES`, in order; a larger or an ``alone`` message is a group."""
    first = size = 0
    for index, message in enumerate(messages):
        single = alone(message)
        if index > first and (single or size + len(message.payload) > GROUP_BYTES):
            yield messages[first:index]
            first, size = index, 0
        size += GROUP_BYTES + 1 if single else len(message.payload)
    if first < len(messages):
        yield messages[first:]


def slices(batch: SampleBatch, rows: int) -> Iterator[SampleBatch]:
    """Cut a batch into batches of at most ``rows`` rows, in order; the first one has what was rejected."""
    if len(batch) <= rows:
        yield batch
        return
    yield replace(batch.take(slice(0, rows)), rejected=batch.rejected)
    for first in range(rows, len(batch), rows):
        yield batch.take(slice(first, first + rows))


def digest_of(message: RawMessage) -> bytes:
    """Identify a message, 16 bytes: the same after it was delivered again."""
    head = f"{message.source}\0{message.key}\0{message.channel}\0".encode(errors="surrogatepass")
    return blake2b(head + message.payload, digest_size=16).digest()


class _Done(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """``rows`` rows of the message with this digest are processed."""

    digest: Annotated[bytes, Meta(min_length=16, max_length=16)]
    rows: Annotated[int, Meta(ge=1, le=2**62)]


class MessageProgress:
    """How many rows of a message that is not finished are processed; one source.

    Looks for the message among the first ``window`` ones after a start.
    """

    def __init__(self, window: int) -> None:
        self.state: KeyedState[_Done] = KeyedState(_Done, "the message in progress")
        self._window = window

    def rows_done(self, messages: Sequence[RawMessage]) -> int:
        """Rows of the next message that an earlier process has processed; 0 for a group of several."""
        done = self.state.get("")
        if done is None:
            return 0
        self._window -= len(messages)
        if len(messages) == 1 and self.is_next(messages[0]):
            return done.rows
        if self._window <= 0:
            self.state.delete("")
        return 0

    def is_next(self, message: RawMessage) -> bool:
        """Whether a message is the one in progress; it has to be a group of its own."""
        done = self.state.get("")
        return done is not None and digest_of(message) == done.digest

    def note(self, message: RawMessage, rows: int) -> None:
        """So many rows of a message are processed."""
        self.state.put("", _Done(digest_of(message), rows))

    def finish(self, message: RawMessage) -> None:
        """All rows of a message are processed."""
        if self.is_next(message):
            self.state.delete("")


class ReplayPacer:
    """Yields the rows of batches when they are due.

    ``speed``  multiple of the recorded speed
    ``clock``  monotonic seconds
    ``wait``   sleeps for so many seconds; returns True to stop: then the rest of the batch is skipped
    """

    def __init__(self, speed: float, clock: Callable[[], float], wait: Callable[[float], bool]) -> None:
        self._speed, self._clock, self._wait = speed, clock, wait
        self._begin: float | None = None
        self._first_ns = self._max_event_ns = 0

    def parts(self, batch: SampleBatch) -> Iterator[SampleBatch]:
        """Yield the rows of ``batch`` in order, each when the largest event time so far is due."""
        if not len(batch):
            yield batch
            return
        if int(batch.time_ns[0]) < self._max_event_ns - _STEP_BACK_S * NS_PER_S:
            self._begin = None  # the next recording, which starts before the end of the last one
        due_ns = np.maximum.accumulate(batch.time_ns)
        self._max_event_ns = int(due_ns[-1])
        first, rejected = 0, batch.rejected
        while first < len(batch):
            now = self._now_ns(int(due_ns[first]))
            last = int(np.searchsorted(due_ns, now, side="right"))
            if last > first:
                part = batch.take(slice(first, last))
                yield replace(part, rejected=rejected) if rejected else part
                first, rejected = last, ()
            if first < len(batch) and self._wait(min(_TICK_S, self._seconds_until(int(due_ns[first])))):
                return

    def _now_ns(self, next_ns: int) -> int:
        """Return the event time that is due now; a long pause of the recording is skipped."""
        clock = self._clock()
        if self._begin is None:
            self._begin, self._first_ns = clock, next_ns
        ahead_s = (next_ns - self._first_ns) / NS_PER_S / self._speed - (clock - self._begin)
        if ahead_s > _MAX_PAUSE_S:
            self._begin, self._first_ns = clock, next_ns
        return self._first_ns + round(min((clock - self._begin) * self._speed * NS_PER_S, LIMIT_NS))

    def _seconds_until(self, next_ns: int) -> float:
        begin = self._clock() if self._begin is None else self._begin
        return max(0.001, begin + (next_ns - self._first_ns) / NS_PER_S / self._speed - self._clock())
