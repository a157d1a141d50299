"""Which messages a broker waits to have acknowledged, and which of those that it sends again are known.

    on_message ──▶ open ──processed_packets, processed──▶ done ──▶ pending_acks
                     ▲ adopted                              ▲ recognised
                     └──── sent again ──────────────────────┘

An acknowledgement is valid only on the connection on which its message came: packet identifiers mean nothing on another
one, and a late acknowledgement would be taken for that of a new message, which would be lost.  After a reconnect the
broker sends everything unacknowledged again, with the same identifiers: what is still held is adopted, and what was
processed, perhaps by an earlier process, is only acknowledged.  Without the session nothing that is known is valid.

Decision: a repetition need not be marked as one (DUP), as some brokers do not: what comes first on a connection is
looked up as well, up to the first message that is new.
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


class AckTracker:
    """Numbers messages from ``last + 1`` on; thread-safe.

    ``done``      packets that were processed before, oldest first; the newest ``max_done`` are remembered
    ``redelivered``  how many messages were repetitions, known by packet identifier and digest (any hash of a message)
    """

    def __init__(self, last: int = 0, done: Mapping[int, bytes] | None = None, *, max_done: int = 4096) -> None:
        self.redelivered = 0
        self._lock = threading.Lock()
        self._last = last
        self._max_done = max_done
        self._epoch = 0
        self._session = self._reported = self._stored = 0  # now, at the last `processed_packets`, at the last commit
        self._may_repeat = 0  # how many of the next messages may be unmarked repetitions
        self._on_connection = 0  # unprocessed messages of this connection
        self._unprocessed: deque[_Entry] = deque()
        self._open: dict[int, _Entry] = {}
        self._done: dict[int, bytes] = {}
        self._acks: list[int] = []
        for mid, digest in (done or {}).items():
            self._remember(mid, digest)

    def connected(self, session_present: bool) -> None:
        """A new connection: earlier acknowledgements are void; without the session so is everything known."""
        with self._lock:
            self._epoch += 1
            self._acks.clear()
            self._on_connection = 0
            if not session_present:
                self._session += 1
                self._open.clear()
                self._done.clear()
            self._may_repeat = len(self._done) + len(self._open)

    def on_qos0_message(self) -> int:
        """Number a message that needs no acknowledgement."""
        with self._lock:
            self._last += 1
            return self._last

    def on_message(self, mid: int, digest: bytes, dup: bool) -> int | None:
        """Number a message; None for a repetition of a known one.  ``dup``: the broker marked it as a repetition."""
        with self._lock:
            may_repeat = dup or self._may_repeat > 0
            self._may_repeat = max(0, self._may_repeat - 1)
            held = self._open.get(mid)
            if held is not None and held.digest == digest and (dup or held.epoch != self._epoch):
                self._on_connection += held.epoch != self._epoch
                held.epoch = self._epoch
                self.redelivered += 1
                return None
            if may_repeat and self._done.get(mid) == digest:
                self.redelivered += 1
                if self._on_connection:  # not ahead of earlier messages
                    self._append(mid, digest)
                else:
                    self._acks.append(mid)
                return None
            self._may_repeat = 0
            self._last += 1
            self._open[mid] = self._append(mid, digest)
            return self._last

    def processed_packets(self, number: int) -> ProcessedPackets:
        """What to store when all messages up to ``number`` are durable.  Changes nothing."""
        with self._lock:
            self._reported = self._session
            packets: dict[int, bytes] = {}
            for entry in self._unprocessed:
                if entry.number > number:
                    break
                if entry.session == self._session:
                    packets.pop(entry.mid, None)  # the latest use of an identifier comes last
                    packets[entry.mid] = entry.digest
            return ProcessedPackets(packets, self._stored != self._session, self._max_done)

    def processed(self, number: int) -> None:
        """All messages up to ``number`` are durable, and the last `processed_packets` are stored."""
        with self._lock:
            self._stored = self._reported
            while self._unprocessed and self._unprocessed[0].number <= number:
                entry = self._unprocessed.popleft()
                if entry.epoch == self._epoch:
                    self._on_connection -= 1
                    self._acks.append(entry.mid)
                if self._open.get(entry.mid) is entry:
                    del self._open[entry.mid]
                if entry.session == self._session:
                    self._remember(entry.mid, entry.digest)

    def pending_acks(self) -> list[int]:
        """Identifiers to acknowledge on the current connection, each once, in the order of their messages."""
        with self._lock:
            acks, self._acks = self._acks, []
            return acks

    def _append(self, mid: int, digest: bytes) -> _Entry:
        """Wait for the commit of the latest number."""
        entry = _Entry(self._last, mid, self._epoch, self._session, digest)
        self._unprocessed.append(entry)
        self._on_connection += 1
        return entry

    def _remember(self, mid: int, digest: bytes) -> None:
        """Remember what was processed: its acknowledgement may be lost."""
        self._done.pop(mid, None)
        self._done[mid] = digest
        if len(self._done) > self._max_done:
            del self._done[next(iter(self._done))]
