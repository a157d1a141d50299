"""Which messages a broker waits to hear about, and which of those it sends again we know already.

An acknowledgement is only good on the connection on which its message came: packet identifiers mean nothing on another,
and a late one would acknowledge a new message that nobody has processed.  After a reconnect the broker sends everything
unacknowledged again, with the same identifiers; what we still hold is not taken twice but adopted.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

_DONE_KEPT = 4096


@dataclass(slots=True)
class _Entry:
    number: int
    mid: int
    epoch: int
    digest: int


class Ledger:
    """Numbers messages from ``last + 1`` on; thread-safe.

    ``digest`` is any hash of what a message says: it and the packet identifier tell a message that comes again.
    """

    def __init__(self, last: int = 0) -> None:
        self._lock = threading.Lock()
        self._last = last
        self._epoch = 0
        self._unprocessed: deque[_Entry] = deque()
        self._open: dict[int, _Entry] = {}
        self._done: dict[int, int] = {}
        self._acks: list[int] = []

    def __len__(self) -> int:
        return len(self._unprocessed)

    def connected(self, session_present: bool) -> None:
        """A new connection: earlier acknowledgements are void; without the session so is all that was known."""
        with self._lock:
            self._epoch += 1
            self._acks.clear()
            if not session_present:
                self._open.clear()
                self._done.clear()

    def unprotected(self) -> int:
        """Number a message that the broker does not want acknowledged."""
        with self._lock:
            self._last += 1
            return self._last

    def arrived(self, mid: int, digest: int, again: bool) -> int | None:
        """Number a message, or None when it is one that we have; ``again``: the broker says that it is a repetition."""
        with self._lock:
            held = self._open.get(mid)
            if held is not None and held.digest == digest and (again or held.epoch != self._epoch):
                held.epoch = self._epoch
                return None
            if again and self._done.get(mid) == digest:
                self._acks.append(mid)
                return None
            self._last += 1
            entry = _Entry(self._last, mid, self._epoch, digest)
            self._unprocessed.append(entry)
            self._open[mid] = entry
            return self._last

    def processed(self, number: int) -> None:
        """All messages up to ``number`` are durable."""
        with self._lock:
            while self._unprocessed and self._unprocessed[0].number <= number:
                entry = self._unprocessed.popleft()
                if entry.epoch == self._epoch:
                    self._acks.append(entry.mid)
                if self._open.get(entry.mid) is entry:
                    del self._open[entry.mid]
                    self._remember(entry)

    def take_acks(self) -> list[int]:
        """Identifiers to acknowledge on the connection of now, in the order in which their messages came."""
        with self._lock:
            acks, self._acks = self._acks, []
            return acks

    def _remember(self, entry: _Entry) -> None:
        """Keep what was processed: its acknowledgement may get lost on the way."""
        self._done.pop(entry.mid, None)
        self._done[entry.mid] = entry.digest
        if len(self._done) > _DONE_KEPT:
            del self._done[next(iter(self._done))]
