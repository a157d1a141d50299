"""Which messages a broker waits to hear about, and which of those it sends again we know already.

    arrived ──▶ open ──receipts, commit──▶ done ──▶ acknowledged
                  ▲ adopted                  ▲ recognised
                  └──── sent again ──────────┘

An acknowledgement is only good on the connection on which its message came: packet identifiers mean nothing on another,
and a late one would acknowledge a new message that nobody has processed.  After a reconnect the broker sends everything
unacknowledged again, with the same identifiers; what we still hold is adopted, and what was processed, perhaps by an
earlier process, is only acknowledged.  Without the session nothing that is known means anything any more.

Decision: a repetition need not be marked as one, as some brokers do not: what comes first on a connection is looked up
as well, up to the first message that is none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from stream_gru.core.commit_records import ProcessedPackets


@dataclass(slots=True)
class _Entry:
    number: int
    mid: int
    epoch: int
    session: int
    digest: bytes


class Ledger:
    """Numbers messages from ``last + 1`` on; thread-safe.

    ``done``: packets that were processed before, oldest first, of which the newest ``done_kept`` are remembered.
    A digest is any hash of what a message says: it and the packet identifier tell a message that comes again.
    ``redelivered`` counts those.
    """

    def __init__(self, last: int = 0, done: Mapping[int, bytes] | None = None, *, done_kept: int = 4096) -> None:
        self.redelivered = 0
        self._lock = threading.Lock()
        self._last = last
        self._done_kept = done_kept
        self._epoch = 0
        self._session = self._told = self._written = 0  # of now, of the last receipts, of those written down
        self._may_repeat = 0  # so many of the next messages may be repetitions without a mark
        self._here = 0  # how many of the unprocessed came on this connection
        self._unprocessed: deque[_Entry] = deque()
        self._open: dict[int, _Entry] = {}
        self._done: dict[int, bytes] = {}
        self._acks: list[int] = []
        for mid, digest in (done or {}).items():
            self._remember(mid, digest)

    def connected(self, session_present: bool) -> None:
        """A new connection: earlier acknowledgements are void; without the session so is all that was known."""
        with self._lock:
            self._epoch += 1
            self._acks.clear()
            self._here = 0
            if not session_present:
                self._session += 1
                self._open.clear()
                self._done.clear()
            self._may_repeat = len(self._done) + len(self._open)

    def unprotected(self) -> int:
        """Number a message that the broker does not want acknowledged."""
        with self._lock:
            self._last += 1
            return self._last

    def arrived(self, mid: int, digest: bytes, again: bool) -> int | None:
        """Number a message, or None when it is one that we have; ``again``: the broker says that it is a repetition."""
        with self._lock:
            may_repeat = again or self._may_repeat > 0
            self._may_repeat = max(0, self._may_repeat - 1)
            held = self._open.get(mid)
            if held is not None and held.digest == digest and (again or held.epoch != self._epoch):
                self._here += held.epoch != self._epoch
                held.epoch = self._epoch
                self.redelivered += 1
                return None
            if may_repeat and self._done.get(mid) == digest:
                self.redelivered += 1
                if self._here:  # not ahead of what came before it
                    self._append(mid, digest)
                else:
                    self._acks.append(mid)
                return None
            self._may_repeat = 0
            self._last += 1
            self._open[mid] = self._append(mid, digest)
            return self._last

    def processed_packets(self, number: int) -> ProcessedPackets:
        """What to write down when all messages up to ``number`` are durable; changes nothing of what is known."""
        with self._lock:
            self._told = self._session
            packets: dict[int, bytes] = {}
            for entry in self._unprocessed:
                if entry.number > number:
                    break
                if entry.session == self._session:
                    packets.pop(entry.mid, None)  # the newest of an identifier stands last
                    packets[entry.mid] = entry.digest
            return ProcessedPackets(packets, new_session=self._written != self._session)

    def processed(self, number: int) -> None:
        """All messages up to ``number`` are durable, and what the last `receipts` said is written down."""
        with self._lock:
            self._written = self._told
            while self._unprocessed and self._unprocessed[0].number <= number:
                entry = self._unprocessed.popleft()
                if entry.epoch == self._epoch:
                    self._here -= 1
                    self._acks.append(entry.mid)
                if self._open.get(entry.mid) is entry:
                    del self._open[entry.mid]
                if entry.session == self._session:
                    self._remember(entry.mid, entry.digest)

    def take_acks(self) -> list[int]:
        """Identifiers to acknowledge on the connection of now, in the order in which their messages came."""
        with self._lock:
            acks, self._acks = self._acks, []
            return acks

    def _append(self, mid: int, digest: bytes) -> _Entry:
        """Wait for a commit of the newest number."""
        entry = _Entry(self._last, mid, self._epoch, self._session, digest)
        self._unprocessed.append(entry)
        self._here += 1
        return entry

    def _remember(self, mid: int, digest: bytes) -> None:
        """Keep what was processed: its acknowledgement may get lost on the way."""
        self._done.pop(mid, None)
        self._done[mid] = digest
        if len(self._done) > self._done_kept:
            del self._done[next(iter(self._done))]
