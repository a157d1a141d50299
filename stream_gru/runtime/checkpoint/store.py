"""The store: durable state, advanced by one transaction per commit.

    write:  begin ─▶ streams ─▶ component states ─▶ positions ─▶ packets ─▶ file offsets ─▶ outboxes ─▶ end (sync)

A kill at any instruction leaves the last complete `write`.  After an error the content of the disk is unknown: the
store must not be used again, and nothing may be acknowledged.
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
from stream_gru.runtime.checkpoint.sqlite_file import StoreLock, checksum, open_database, require_local, verified

FILE_NAME = "state.db"
_FETCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Commit:
    """What one commit makes durable.

    ``deleted_streams``       streams of which everything is deleted, before anything is written
    ``schema``                row schema of ``streams``, opaque to the store
    ``streams``               (name, row) of each changed stream
    ``discarded_components``  components of which all states are deleted, before new ones are written
    ``component_states``      (component, key, bytes); None for the bytes deletes the state
    ``positions``             by source
    ``processed_packets``     by source
    ``file_offsets``          by sink
    ``unacked``, ``acked``    by sink: new outputs in the outbox, and numbers of outputs to delete from it
    ``numbers``               single values by name
    ``texts``                 single values by name that alone are no reason for a commit
    """

    deleted_streams: Sequence[str] = ()
    schema: str = ""
    streams: Sequence[tuple[str, bytes]] = ()
    discarded_components: Sequence[str] = ()
    component_states: Sequence[tuple[str, str, bytes | None]] = ()
    positions: Mapping[str, Position] = field(default_factory=dict)
    processed_packets: Mapping[str, ProcessedPackets] = field(default_factory=dict)
    file_offsets: Mapping[str, FileOffset] = field(default_factory=dict)
    unacked: Mapping[str, Sequence[OutboxRow]] = field(default_factory=dict)
    acked: Mapping[str, Sequence[int]] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any((
            self.deleted_streams, self.streams, self.discarded_components, self.component_states, self.positions,
            self.processed_packets, self.file_offsets, self.unacked, self.acked, self.numbers,
        ))  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A committed stream: ``row`` is None when its checksum is wrong, ``commit_no`` counts commits."""

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
        self._schemas: dict[str, int] = {}
        self._last_packet: dict[str, int] = {}  # highest packet number, by source
        self._running = False
        self.commit_no = 0
        self.moved_aside: Path | None = None
        self.clean_shutdown = True

    def open(self, repair: bool = True) -> None:
        """Lock and open; then ``moved_aside`` is where a damaged file went, ``clean_shutdown`` how the last run ended.

        ``repair`` False: a damaged file is not moved but an error.  Raises StoreLocked when another process uses the
        store, StoreError when it cannot be used here.
        """
        self.acquire_lock()
        try:
            self._connection, self.moved_aside = open_database(self.path, self._wall_s, repair)
            with self._sqlite_errors():
                self._schemas = {text: number for number, text in self._rows("SELECT id, text FROM row_schema")}
                self.commit_no = self._number("commit_no", 0)
                self._running = bool(self._number("running", 0))
                self.clean_shutdown = not self._running
                # Read only here: the query scans all packets.
                last = "SELECT source, max(CAST(number AS INTEGER)) FROM packet GROUP BY source"
                self._last_packet = dict(self._rows(last))
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        """Whether the store can be used."""
        return self._connection is not None

    def acquire_lock(self) -> None:
        """Create the directory and lock it; `open` calls it too.

        Raises StoreLocked when another process uses the store, StoreError when it cannot be used here.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self._folder}: cannot be created: {error.strerror}") from error
        require_local(self._folder)
        self._lock.acquire()

    def close(self) -> None:
        """Close the file and release the lock; may be called twice, and after an error."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._lock.release()

    def mark_clean_shutdown(self, clean: bool = True) -> None:
        """Record that the run ends after the last commit on purpose, or, with False, that it did not.

        Raises StoreError.
        """
        with self._sqlite_errors():
            self._execute("INSERT OR REPLACE INTO meta VALUES('running', ?)", (int(not clean),))
            self._running = not clean

    # ---- the transaction ------------------------------------------------------------------------------------------

    def write(self, commit: Commit) -> None:
        """Make all of it durable, or nothing.  Raises StoreError: then the store must not be used again."""
        with self._sqlite_errors():
            self._begin(commit)
            self._delete_streams(commit.deleted_streams)
            self._write_streams(commit)
            self._write_component_states(commit)
            self._write_positions(commit)
            self._write_packets(commit)
            self._write_file_offsets(commit)
            self._write_outboxes(commit)
            self._end()

    def _begin(self, commit: Commit) -> None:
        self._execute("BEGIN IMMEDIATE")
        self.commit_no += 1
        running = {} if self._running else {"running": 1}
        values = {"commit_no": self.commit_no, **running, **commit.numbers, **commit.texts}
        self._many("INSERT OR REPLACE INTO meta VALUES(?, ?)", list(values.items()))
        self._running = True

    def _delete_streams(self, names: Sequence[str]) -> None:
        self._many("DELETE FROM stream WHERE name=?", [(name,) for name in names])
        self._many("DELETE FROM component_state WHERE key=?", [(name,) for name in names])

    def _write_streams(self, commit: Commit) -> None:
        if not commit.streams:
            return
        schema, commit_no = self._schema_id(commit.schema), self.commit_no
        self._many(
            "INSERT INTO stream VALUES(?1, ?2, ?3, ?4, ?5) ON CONFLICT(name)"
            " DO UPDATE SET schema=?2, commit_no=?3, row=?4, crc=?5",
            [(name, schema, commit_no, row, checksum(name, commit.schema, row)) for name, row in commit.streams],
        )

    def _write_component_states(self, commit: Commit) -> None:
        self._many(
            "DELETE FROM component_state WHERE component=?", [(component,) for component in commit.discarded_components]
        )
        deleted = [(component, key) for component, key, data in commit.component_states if data is None]
        written = [
            (component, key, data, checksum(component, key, data))
            for component, key, data in commit.component_states
            if data is not None
        ]
        self._many("DELETE FROM component_state WHERE component=? AND key=?", deleted)
        self._many("INSERT OR REPLACE INTO component_state VALUES(?, ?, ?, ?)", written)

    def _write_positions(self, commit: Commit) -> None:
        # File names are bytes, which need not be valid text.
        rows = [(source, os.fsencode(at.name), at.offset, at.fingerprint) for source, at in commit.positions.items()]
        self._many("INSERT OR REPLACE INTO position VALUES(?, ?, ?, ?)", rows)

    def _write_packets(self, commit: Commit) -> None:
        for source, processed in commit.processed_packets.items():
            if processed.new_session:
                self._execute("DELETE FROM packet WHERE source=?", (source,))
            first = self._last_packet.get(source, 0) + 1
            rows = [(source, id_, digest, first + n) for n, (id_, digest) in enumerate(processed.packets.items())]
            # Identifiers have 16 bits: a source has at most 65,535 rows.
            self._many("INSERT OR REPLACE INTO packet VALUES(?, ?, ?, ?)", rows)
            self._last_packet[source] = first + len(rows) - 1

    def _write_file_offsets(self, commit: Commit) -> None:
        rows = [(sink, at.path, at.offset, at.detail) for sink, at in commit.file_offsets.items()]
        self._many("INSERT OR REPLACE INTO file_offset VALUES(?, ?, ?, ?)", rows)

    def _write_outboxes(self, commit: Commit) -> None:
        for sink, numbers in commit.acked.items():
            self._many("DELETE FROM outbox WHERE sink=? AND number=?", [(sink, number) for number in numbers])
        for sink, outputs in commit.unacked.items():
            rows = [(sink, one.number, one.topic, one.key, one.payload) for one in outputs]
            self._many("INSERT OR REPLACE INTO outbox VALUES(?, ?, ?, ?, ?)", rows)
            if outputs:
                last = max(one.number for one in outputs)
                self._execute("INSERT OR REPLACE INTO outbox_counter VALUES(?, ?)", (sink, last))

    def _end(self) -> None:
        self._execute("COMMIT")

    # ---- reading; all methods raise StoreError --------------------------------------------------------------------

    def rows(self, newest: int | None = None) -> Iterator[StoredRow]:
        """Yield all streams, or the ``newest`` last written ones, in the order of their commits."""
        query = (
            "SELECT name, text, row, crc, commit_no FROM stream LEFT JOIN row_schema ON id = schema WHERE name IN"
            " (SELECT name FROM stream ORDER BY commit_no DESC, name DESC LIMIT ?) ORDER BY commit_no, name"
        )
        with self._sqlite_errors():
            cursor = self._execute(query, (-1 if newest is None else newest,))
            while found := cursor.fetchmany(_FETCH_ROWS):
                for columns in found:
                    yield _stored_row(*columns)

    def row(self, name: str) -> StoredRow | None:
        """Return one stream; None if it was never committed."""
        query = "SELECT name, text, row, crc, commit_no FROM stream LEFT JOIN row_schema ON id = schema WHERE name=?"
        with self._sqlite_errors():
            found = self._rows(query, (name,))
        return _stored_row(*found[0]) if found else None

    def count(self) -> int:
        """Return the number of streams."""
        with self._sqlite_errors():
            return int(self._one("SELECT count(*) FROM stream"))

    def count_known(self) -> int:
        """Return the number of names that have a row or a component state."""
        query = "SELECT count(*) FROM (SELECT name FROM stream UNION SELECT key FROM component_state)"
        with self._sqlite_errors():
            return int(self._one(query))

    def number(self, key: str, default: int) -> int:
        """Return a value of `Commit.numbers`."""
        with self._sqlite_errors():
            return self._number(key, default)

    def text(self, key: str, default: str) -> str:
        """Return a value of `Commit.texts`."""
        with self._sqlite_errors():
            found = self._rows("SELECT value FROM meta WHERE key=?", (key,))
        return found[0][0] if found and isinstance(found[0][0], str) else default

    def schemas(self) -> list[str]:
        """Return the schemas of all rows."""
        query = "SELECT text FROM row_schema WHERE id IN (SELECT DISTINCT schema FROM stream) ORDER BY id"
        with self._sqlite_errors():
            return [text for (text,) in self._rows(query)]

    def names(self) -> list[str]:
        """Return the names of all streams, sorted."""
        with self._sqlite_errors():
            return [name for (name,) in self._rows("SELECT name FROM stream ORDER BY name")]

    def states_of_stream(self, name: str) -> dict[str, bytes | None]:
        """Return the states of a stream by component; None for one with a wrong checksum."""
        with self._sqlite_errors():
            found = self._rows("SELECT component, data, crc FROM component_state WHERE key=?", (name,))
        return {component: verified(data, crc, component, name) for component, data, crc in found}

    def states_of_component(self, component: str) -> dict[str, bytes | None]:
        """Return the states of a component by key; None for one with a wrong checksum."""
        query = "SELECT key, data, crc FROM component_state WHERE component=? ORDER BY key"
        with self._sqlite_errors():
            found = self._rows(query, (component,))
        return {key: verified(data, crc, component, key) for key, data, crc in found}

    def components(self) -> list[str]:
        """Return the names of all components with a state."""
        with self._sqlite_errors():
            return [component for (component,) in self._rows("SELECT DISTINCT component FROM component_state")]

    def positions(self) -> dict[str, Position]:
        """Return the position of each source."""
        with self._sqlite_errors():
            found = self._rows("SELECT source, name, offset, fingerprint FROM position")
        return {source: Position(os.fsdecode(name), *rest) for source, name, *rest in found}

    def packets(self, source: str) -> dict[int, bytes]:
        """Return the processed packets of a source, oldest first."""
        with self._sqlite_errors():
            return dict(self._rows("SELECT id, digest FROM packet WHERE source=? ORDER BY number", (source,)))

    def sink_checkpoint(self, sink: str) -> SinkCheckpoint:
        """Return what a sink needs to continue."""
        with self._sqlite_errors():
            offsets = self._rows("SELECT path, offset, detail FROM file_offset WHERE sink=?", (sink,))
            found = self._rows("SELECT topic, payload, key, number FROM outbox WHERE sink=? ORDER BY number", (sink,))
            last = self._one("SELECT max(last_number) FROM outbox_counter WHERE sink=?", (sink,))
        outputs = [OutboxRow(*row) for row in found]
        return SinkCheckpoint(FileOffset(*offsets[0]) if offsets else None, outputs, last or 0)

    def file_offsets(self) -> dict[str, FileOffset]:
        """Return the durable length of each sink's file."""
        with self._sqlite_errors():
            found = self._rows("SELECT sink, path, offset, detail FROM file_offset")
        return {sink: FileOffset(*columns) for sink, *columns in found}

    def outputs_waiting(self) -> dict[str, int]:
        """Return the number of outputs in each sink's outbox."""
        with self._sqlite_errors():
            return dict(self._rows("SELECT sink, count(*) FROM outbox GROUP BY sink"))

    # ---- deleting on request; all methods raise StoreError --------------------------------------------------------

    def delete_outbox(self, sink: str) -> None:
        """Delete the outputs of a sink."""
        with self._sqlite_errors():
            self._execute("DELETE FROM outbox WHERE sink=?", (sink,))

    def delete_file_offset(self, sink: str) -> None:
        """Delete the durable length of a sink's file."""
        with self._sqlite_errors():
            self._execute("DELETE FROM file_offset WHERE sink=?", (sink,))

    def delete_position(self, source: str) -> None:
        """Delete the position of a source, which then starts at the beginning."""
        with self._sqlite_errors():
            self._execute("DELETE FROM position WHERE source=?", (source,))

    def delete_streams(self, names: Sequence[str]) -> None:
        """Delete streams with their component states, all or none."""
        with self._sqlite_errors():
            self._execute("BEGIN IMMEDIATE")
            self._delete_streams(names)
            self._end()

    # ---- SQLite ---------------------------------------------------------------------------------------------------

    def _schema_id(self, text: str) -> int:
        if text not in self._schemas:
            cursor = self._execute("INSERT INTO row_schema(text) VALUES(?)", (text,))
            self._schemas[text] = int(cursor.lastrowid or 0)
        return self._schemas[text]

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
    def _sqlite_errors(self) -> Iterator[None]:
        """Raise StoreError in place of SQLite's errors; the connection is closed after one."""
        try:
            yield
        except sqlite3.Error as error:
            connection, self._connection = self._require(), None
            with suppress(sqlite3.Error):
                connection.close()
            raise StoreError(f"{self.path}: SQLite failed: {error}; nothing is acknowledged") from error


def _stored_row(name: str, schema: str | None, row: object, crc: object, commit_no: int) -> StoredRow:
    return StoredRow(name, schema or "", verified(row, crc, name, schema or ""), commit_no)
