"""The store: what a daemon must not forget, moved on by one transaction at a time.

    write(changes):  begin ─▶ streams ─▶ memories ─▶ positions ─▶ packets ─▶ marks ─▶ outboxes ─▶ end (sync)

A kill at any instruction leaves what the last `write` left.  After an error nothing is known of what is on the disk:
the store must not be used again, and nothing may be acknowledged.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream_gru.core.commit_records import FileOffset, OutboxRow, ProcessedPackets, SinkCheckpoint
from stream_gru.core.errors import StoreError
from stream_gru.core.types import Position
from stream_gru.runtime.checkpoint.checksum import checksum, whole
from stream_gru.runtime.checkpoint.lock import StoreLock, require_local
from stream_gru.runtime.checkpoint.sqlite_file import open_database

FILE_NAME = "state.db"
_PORTION = 256


@dataclass(frozen=True, slots=True)
class Commit:
    """What one commit makes durable.

    ``form``       how the rows of ``streams`` are to be read, and of which model they are: opaque here
    ``forgotten``  names of which all that was kept is deleted, before anything is written
    ``streams``    (name, row) of each stream that has changed
    ``memories``   (part, name, bytes; None: nothing is remembered any more)
    ``positions``  by source; ``receipts`` by source
    ``marks``      by sink; ``outgoing`` new outputs by sink, ``answered`` numbers to delete, by sink
    ``numbers``    by name, for whoever wants to keep one; ``dropped`` parts of which all memories are void
    ``texts``      by name, what stands beside other changes: alone they are none
    """

    schema: str = ""
    streams: Sequence[tuple[str, bytes]] = ()
    component_states: Sequence[tuple[str, str, bytes | None]] = ()
    positions: Mapping[str, Position] = field(default_factory=dict)
    processed_packets: Mapping[str, ProcessedPackets] = field(default_factory=dict)
    file_offsets: Mapping[str, FileOffset] = field(default_factory=dict)
    unacked: Mapping[str, Sequence[OutboxRow]] = field(default_factory=dict)
    acked: Mapping[str, Sequence[int]] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    discarded_components: Sequence[str] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    deleted_streams: Sequence[str] = ()

    def __bool__(self) -> bool:
        return any((
            self.streams, self.component_states, self.positions, self.processed_packets, self.file_offsets,
            self.unacked, self.acked, self.numbers, self.discarded_components, self.deleted_streams,
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A stream as it was committed: ``row`` is None when it is damaged; ``commit_no`` counts commits."""

    name: str
    schema: str
    row: bytes | None
    commit_no: int


class Store:
    """The file ``state.db`` in ``folder``; all methods belong to one thread.

    ``wall_s``: seconds since 1970, for the name of a damaged file.
    """

    def __init__(self, folder: Path, *, wall_s: Callable[[], float] = time.time) -> None:
        self.path = folder / FILE_NAME
        self._folder, self._wall_s = folder, wall_s
        self._lock = StoreLock(folder / "lock")
        self._connection: sqlite3.Connection | None = None
        self._forms: dict[str, int] = {}
        self._newest_packet: dict[str, int] = {}  # number of the last one, by source
        self._running = False
        self.commit_no = 0
        self.moved_aside: Path | None = None
        self.clean_shutdown = True

    def open(self, repair: bool = True) -> None:
        """Lock and open; ``moved_aside`` tells where a damaged file went.

        ``ended_well`` tells whether the last run that committed something came to its end.  ``repair`` False: a damaged
        file stays where it is, and is an error.  Raises StoreLocked when another process has it, StoreError when it
        cannot be used here.
        """
        self.acquire_lock()
        try:
            self._connection, self.moved_aside = open_database(self.path, self._wall_s, repair)
            with self._telling():
                self._forms = {text: number for number, text in self._rows("SELECT id, text FROM form")}
                self.commit_no = self._number("commit_no", 0)
                self._running = bool(self._number("running", 0))
                self.clean_shutdown = not self._running
                # Read once: all packets would have to be looked at.
                newest = "SELECT source, max(CAST(number AS INTEGER)) FROM packet GROUP BY source"
                self._newest_packet = dict(self._rows(newest))
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._connection is not None

    def acquire_lock(self) -> None:
        """Make the folder and lock it; may be called before `open`, which does it too.

        Raises StoreLocked when another process has it, StoreError when it cannot be used here.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self._folder}: cannot be made: {error.strerror}") from error
        require_local(self._folder)
        self._lock.acquire()

    def close(self) -> None:
        """Close the file and free the lock; may be called twice, and after an error."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._lock.release()

    def mark_clean_shutdown(self, clean: bool = True) -> None:
        """Note that the last commit was the end of a run and not of its power; or, on behalf of it, not.

        Raises StoreError.
        """
        with self._telling():
            self._execute("INSERT OR REPLACE INTO meta VALUES('running', ?)", (int(not clean),))
            self._running = not clean

    # ---- the transaction ------------------------------------------------------------------------------------------

    def write(self, changes: Commit) -> None:
        """Make all of it durable, or nothing.  Raises StoreError: then the store must not be used any more."""
        with self._telling():
            self._begin(changes)
            self._delete(changes.deleted_streams)
            self._write_streams(changes)
            self._write_memories(changes)
            self._write_positions(changes)
            self._write_packets(changes)
            self._write_marks(changes)
            self._write_outboxes(changes)
            self._end()

    def _begin(self, changes: Commit) -> None:
        self._execute("BEGIN IMMEDIATE")
        self.commit_no += 1
        running = {} if self._running else {"running": 1}
        facts = {"commit_no": self.commit_no, **running, **changes.numbers, **changes.texts}
        self._many("INSERT OR REPLACE INTO meta VALUES(?, ?)", list(facts.items()))
        self._running = True

    def _delete(self, names: Sequence[str]) -> None:
        self._many("DELETE FROM stream WHERE name=?", [(name,) for name in names])
        self._many("DELETE FROM memory WHERE name=?", [(name,) for name in names])

    def _write_streams(self, changes: Commit) -> None:
        if not changes.streams:
            return
        form, commit_no = self._form_id(changes.schema), self.commit_no
        self._many(
            "INSERT INTO stream VALUES(?1, ?2, ?3, ?4, ?5) ON CONFLICT(name)"
            " DO UPDATE SET form=?2, commit_no=?3, row=?4, crc=?5",
            [(name, form, commit_no, row, checksum(name, changes.schema, row)) for name, row in changes.streams],
        )

    def _write_memories(self, changes: Commit) -> None:
        self._many("DELETE FROM memory WHERE part=?", [(part,) for part in changes.discarded_components])
        gone = [(part, name) for part, name, data in changes.component_states if data is None]
        there = [
            (part, name, data, checksum(part, name, data))
            for part, name, data in changes.component_states
            if data is not None
        ]
        self._many("DELETE FROM memory WHERE part=? AND name=?", gone)
        self._many("INSERT OR REPLACE INTO memory VALUES(?, ?, ?, ?)", there)

    def _write_positions(self, changes: Commit) -> None:
        # Names of files are bytes, which need not be text.
        rows = [(source, os.fsencode(at.name), at.offset, at.fingerprint) for source, at in changes.positions.items()]
        self._many("INSERT OR REPLACE INTO position VALUES(?, ?, ?, ?)", rows)

    def _write_packets(self, changes: Commit) -> None:
        for source, receipts in changes.processed_packets.items():
            if receipts.new_session:
                self._execute("DELETE FROM packet WHERE source=?", (source,))
            first = self._newest_packet.get(source, 0) + 1
            rows = [(source, id_, digest, first + n) for n, (id_, digest) in enumerate(receipts.packets.items())]
            # Identifiers have 16 bits: there are never more than 65,535 rows of a source.
            self._many("INSERT OR REPLACE INTO packet VALUES(?, ?, ?, ?)", rows)
            self._newest_packet[source] = first + len(rows) - 1

    def _write_marks(self, changes: Commit) -> None:
        rows = [(sink, mark.path, mark.offset, mark.detail) for sink, mark in changes.file_offsets.items()]
        self._many("INSERT OR REPLACE INTO mark VALUES(?, ?, ?, ?)", rows)

    def _write_outboxes(self, changes: Commit) -> None:
        for sink, numbers in changes.acked.items():
            self._many("DELETE FROM outbox WHERE sink=? AND number=?", [(sink, number) for number in numbers])
        for sink, outgoing in changes.unacked.items():
            rows = [(sink, one.number, one.topic, one.key, one.payload) for one in outgoing]
            self._many("INSERT OR REPLACE INTO outbox VALUES(?, ?, ?, ?, ?)", rows)
            if outgoing:
                last = max(one.number for one in outgoing)
                self._execute("INSERT OR REPLACE INTO counter VALUES(?, ?)", (sink, last))

    def _end(self) -> None:
        self._execute("COMMIT")

    # ---- what is read at the start --------------------------------------------------------------------------------

    def rows(self, newest: int | None = None) -> Iterator[StoredRow]:
        """All streams, or the ``newest`` that were written last, oldest commit first.  Raises StoreError."""
        query = (
            "SELECT name, text, row, crc, commit_no FROM stream LEFT JOIN form ON form.id = stream.form WHERE name IN"
            " (SELECT name FROM stream ORDER BY commit_no DESC, name DESC LIMIT ?) ORDER BY commit_no, name"
        )
        with self._telling():
            cursor = self._execute(query, (-1 if newest is None else newest,))
            while found := cursor.fetchmany(_PORTION):
                for columns in found:
                    yield _stored(*columns)

    def row(self, name: str) -> StoredRow | None:
        """One stream; None when it was never committed.  Raises StoreError."""
        query = (
            "SELECT name, text, row, crc, commit_no FROM stream LEFT JOIN form ON form.id = stream.form WHERE name=?"
        )
        with self._telling():
            found = self._rows(query, (name,))
        return _stored(*found[0]) if found else None

    def count(self) -> int:
        """How many streams there are.  Raises StoreError."""
        with self._telling():
            return int(self._one("SELECT count(*) FROM stream"))

    def count_known(self) -> int:
        """Of how many names something is kept.  Raises StoreError."""
        with self._telling():
            return int(self._one("SELECT count(*) FROM (SELECT name FROM stream UNION SELECT name FROM memory)"))

    def number(self, key: str, default: int) -> int:
        """What `Commit.numbers` once said.  Raises StoreError."""
        with self._telling():
            return self._number(key, default)

    def text(self, key: str, default: str) -> str:
        """What `Commit.texts` once said.  Raises StoreError."""
        with self._telling():
            found = self._rows("SELECT value FROM meta WHERE key=?", (key,))
        return found[0][0] if found and isinstance(found[0][0], str) else default

    def schemas(self) -> list[str]:
        """The forms of all rows.  Raises StoreError."""
        query = "SELECT text FROM form WHERE id IN (SELECT DISTINCT form FROM stream) ORDER BY id"
        with self._telling():
            return [text for (text,) in self._rows(query)]

    def names(self) -> list[str]:
        """All streams, by name.  Raises StoreError."""
        with self._telling():
            return [name for (name,) in self._rows("SELECT name FROM stream ORDER BY name")]

    def states_of_stream(self, name: str) -> dict[str, bytes | None]:
        """What every part remembers of a name; None where the bytes are damaged.  Raises StoreError."""
        with self._telling():
            found = self._rows("SELECT part, data, crc FROM memory WHERE name=?", (name,))
        return {part: whole(data, crc, part, name) for part, data, crc in found}

    def states_of_component(self, component: str) -> dict[str, bytes | None]:
        """What one part remembers, by name; None where the bytes are damaged.  Raises StoreError."""
        with self._telling():
            found = self._rows("SELECT name, data, crc FROM memory WHERE part=? ORDER BY name", (component,))
        return {name: whole(data, crc, component, name) for name, data, crc in found}

    def components(self) -> list[str]:
        """Names of all parts of which something is kept.  Raises StoreError."""
        with self._telling():
            return [component for (component,) in self._rows("SELECT DISTINCT part FROM memory")]

    def positions(self) -> dict[str, Position]:
        """Where each source stands.  Raises StoreError."""
        with self._telling():
            found = self._rows("SELECT source, name, offset, proof FROM position")
        return {source: Position(os.fsdecode(name), offset, proof) for source, name, offset, proof in found}

    def packets(self, source: str) -> dict[int, bytes]:
        """Packets of a broker that were processed, oldest first.  Raises StoreError."""
        with self._telling():
            return dict(self._rows("SELECT id, digest FROM packet WHERE source=? ORDER BY number", (source,)))

    def sink_checkpoint(self, sink: str) -> SinkCheckpoint:
        """What a sink needs to go on.  Raises StoreError."""
        with self._telling():
            marks = self._rows("SELECT path, offset, detail FROM mark WHERE sink=?", (sink,))
            found = self._rows("SELECT topic, payload, key, number FROM outbox WHERE sink=? ORDER BY number", (sink,))
            last = self._one("SELECT max(last) FROM counter WHERE sink=?", (sink,))
        return SinkCheckpoint(FileOffset(*marks[0]) if marks else None, [OutboxRow(*row) for row in found], last or 0)

    def outputs_waiting(self) -> dict[str, int]:
        """How many outputs wait, by sink.  Raises StoreError."""
        with self._telling():
            return dict(self._rows("SELECT sink, count(*) FROM outbox GROUP BY sink"))

    # ---- what is deleted on request -------------------------------------------------------------------------------

    def delete_outbox(self, sink: str) -> None:
        """Give up what waits for a sink that is no more.  Raises StoreError."""
        with self._telling():
            self._execute("DELETE FROM outbox WHERE sink=?", (sink,))

    def delete_position(self, source: str) -> None:
        """Let a source begin at the beginning.  Raises StoreError."""
        with self._telling():
            self._execute("DELETE FROM position WHERE source=?", (source,))

    def delete_streams(self, names: Sequence[str]) -> None:
        """Delete streams and what is remembered of them, all or none.  Raises StoreError."""
        with self._telling():
            self._execute("BEGIN IMMEDIATE")
            self._delete(names)
            self._end()

    # ---- SQLite ---------------------------------------------------------------------------------------------------

    def _form_id(self, text: str) -> int:
        if text not in self._forms:
            cursor = self._execute("INSERT INTO form(text) VALUES(?)", (text,))
            self._forms[text] = int(cursor.lastrowid or 0)
        return self._forms[text]

    def _number(self, key: str, default: int) -> int:
        found = self._one("SELECT max(value) FROM meta WHERE key=?", (key,))
        return default if found is None else int(found)

    def _require(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.path}: not open")
        return self._connection

    def _execute(self, text: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        return self._require().execute(text, values)

    def _many(self, text: str, rows: Sequence[Sequence[object]]) -> None:
        if rows:
            self._require().executemany(text, rows)

    def _rows(self, text: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._execute(text, values).fetchall()

    def _one(self, text: str, values: Sequence[object] = ()) -> Any:
        return self._execute(text, values).fetchone()[0]

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what SQLite says into StoreError, and never use the connection again after it."""
        try:
            yield
        except sqlite3.Error as error:
            connection, self._connection = self._require(), None
            _close_quietly(connection)
            raise StoreError(f"{self.path}: cannot be used: {error}; nothing is acknowledged") from error


def _stored(name: str, form: str | None, row: object, crc: object, commit_no: int) -> StoredRow:
    return StoredRow(name, form or "", whole(row, crc, name, form or ""), commit_no)


def _close_quietly(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        connection.close()
