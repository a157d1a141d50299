"""The store: durable state, advanced by one transaction per commit.

    write:  begin ─▶ log ─▶ end (sync)                                                     most commits
            begin ─▶ streams ─▶ component states ─▶ values ─▶ outboxes ─▶ end (sync)       when the log is full

The tables lack what is in the log; before they are read, the log is written to them.  A kill at any instruction leaves
the last complete `write`.  After an error the content of the disk is unknown: the store must not be used again, and
nothing may be acknowledged.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from stream_gru.connectors.folders import disk_bytes
from stream_gru.core.commit_records import FileOffset, OutboxRow, SinkCheckpoint
from stream_gru.core.errors import StoreError
from stream_gru.core.keyed_state import encode
from stream_gru.core.types import Position
from stream_gru.runtime.checkpoint.commit import Changes, Commit, StoredRow, position_of
from stream_gru.runtime.checkpoint.sqlite_file import (
    Damaged,
    Database,
    Run,
    StoreLock,
    checksum,
    open_database,
    require_local,
    verified,
)

log = logging.getLogger(__name__)

T = TypeVar("T", int, str)

FILE_NAME = "state.db"
_FETCH_ROWS = 256


class Store(Database):
    """The file ``state.db`` in ``folder``, used by one thread.

    ``wall_s``: seconds since 1970, for the name of a damaged file.  ``disk_bytes``: written since the start.
    """

    def __init__(self, folder: Path, *, wall_s: Callable[[], float] = time.time) -> None:
        super().__init__(folder / FILE_NAME)
        self._folder, self._wall_s = folder, wall_s
        self._lock = StoreLock(folder / "lock")
        self._file = -1  # number of the file in its file system
        self._schemas: dict[str, int] = {}
        self._changes = Changes()  # what is in the log
        self._run = Run.CLEAN
        self.commit_no = 0
        self.disk_bytes = 0
        self.moved_aside: Path | None = None
        self.stale = ""
        self.clean_shutdown = True

    def open(self, repair: bool = True) -> None:
        """Lock and open; then ``moved_aside`` is where a damaged file went, ``clean_shutdown`` how the last run ended.

        ``stale`` is why the last commits may be missing, empty if there is no sign of it.
        ``repair`` False: a damaged file is not moved but an error.  Raises StoreLocked when another process uses the
        store, StoreError when it cannot be used here.
        """
        self.acquire_lock()
        try:
            self._connection, self.moved_aside = open_database(self.path, self._wall_s, repair, self._read)
            self.clean_shutdown = self._run is Run.CLEAN
            with self._sqlite_errors():
                self._write_log_to_tables()
                self._file = self.path.stat().st_ino
                self._check_file()
        except BaseException:
            self.close()
            raise

    def _read(self, connection: sqlite3.Connection, has_log: bool) -> None:
        """Read what a run continues with.  Raises sqlite3.Error, and Damaged when a checksum is wrong.

        ``has_log``: whether the log of SQLite existed.
        """
        self._connection = connection
        self._schemas = {text: number for number, text in self._rows("SELECT id, text FROM row_schema")}
        self._check_values()
        self.commit_no = self._value("meta", "commit_no", int, 0)
        self._run = Run(self._value("meta", "run", int, Run.CLEAN))
        packets = self._values("packets", list[tuple[int, bytes]])
        self._changes = Changes({source: dict(found) for source, found in packets.items()})
        for commit_no, data, crc in self._rows("SELECT commit_no, data, crc FROM log ORDER BY commit_no"):
            self.commit_no += 1
            if commit_no != self.commit_no or verified(data, crc, str(commit_no)) is None:
                raise Damaged(f"commit {self.commit_no} is missing or has a wrong checksum")
            try:
                self._changes.add_encoded(data, commit_no)
            except ValueError as error:
                raise Damaged(f"commit {commit_no} cannot be read: {error}") from error
        if self._run is Run.RUNNING and not has_log:
            self.stale = f"{self.path.name}-wal, which had the last commits, is missing"

    def _check_values(self) -> None:
        for kind, name, data, crc in self._rows("SELECT kind, name, data, crc FROM value"):
            if verified(data, crc, kind, name) is None:
                raise Damaged(f"{kind} {name} has a wrong checksum")

    def _check_file(self) -> None:
        """Detect a file that is a copy, and note which file this is."""
        known = self._value("meta", "file", int, -1)
        if known != self._file:
            self._write_value("meta", "file", encode(self._file))
            if known != -1 and not self.stale:
                self.stale = "it is a copy, and older than the original if that was used afterwards"

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
        if self._connection is not None and self._run is Run.RUNNING:
            with suppress(StoreError):
                self._set_run(Run.FAILED)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        self._lock.release()

    def mark_clean_shutdown(self, clean: bool = True) -> None:
        """Record that the run ends after the last commit on purpose, or, with False, that it did not.

        Raises StoreError.
        """
        self._set_run(Run.CLEAN if clean else Run.RUNNING)

    def _set_run(self, run: Run) -> None:
        with self._tables():
            self._write_value("meta", "run", encode(run))
            self._run = run

    # ---- the transaction ------------------------------------------------------------------------------------------

    def write(self, commit: Commit) -> None:
        """Make all of it durable, or nothing.  Raises StoreError: then the store must not be used again."""
        with self._sqlite_errors(), self._counting():
            self._require_file()
            self._begin()
            logged = self._changes.encoded(commit)
            if logged is None:
                self._changes.add(replace(commit, streams=()), self.commit_no)
                self._write_tables()
                self._write_streams((name, commit.schema, self.commit_no, row) for name, row in commit.streams)
            else:
                commit, data = logged
                self._write_log(data)
                self._changes.add(commit, self.commit_no, len(data))
            self._end()

    def _require_file(self) -> None:
        """Raise StoreError when the file was deleted, or replaced by another one."""
        try:
            found = self.path.stat().st_ino
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}: deleted while in use; nothing is acknowledged") from error
        if found != self._file:
            raise StoreError(f"{self.path}: replaced while in use; nothing is acknowledged")

    def _begin(self) -> None:
        self._execute("BEGIN IMMEDIATE")
        self.commit_no += 1
        if self._run is not Run.RUNNING:
            self._run = Run.RUNNING
            self._write_value("meta", "run", encode(self._run))

    def _write_log(self, data: bytes) -> None:
        self._execute("INSERT INTO log VALUES(?, ?, ?)", (self.commit_no, data, checksum(str(self.commit_no), data)))

    def _write_tables(self) -> None:
        changes = self._changes
        self._delete_streams(changes.deleted_streams)
        self._write_streams((name, *changed) for name, changed in changes.rows.items())
        self._write_component_states(changes)
        self._write_values(changes)
        self._write_outboxes(changes)
        self._execute("DELETE FROM log")
        self._changes = Changes(changes.packets)

    def _delete_streams(self, names: Collection[str]) -> None:
        self._many("DELETE FROM stream WHERE name=?", [(name,) for name in names])
        self._many("DELETE FROM component_state WHERE key=?", [(name,) for name in names])

    def _write_streams(self, rows: Iterable[tuple[str, str, int, bytes]]) -> None:
        self._many(
            "INSERT INTO stream VALUES(?1, ?2, ?3, ?4, ?5) ON CONFLICT(name)"
            " DO UPDATE SET schema=?2, commit_no=?3, row=?4, crc=?5",
            (
                (name, self._schema_id(schema), commit_no, row, checksum(name, schema, row))
                for name, schema, commit_no, row in rows
            ),
        )

    def _write_component_states(self, changes: Changes) -> None:
        components = [(component,) for component in changes.discarded_components]
        deleted = [at for at, data in changes.component_states.items() if data is None]
        written = [
            (*at, data, checksum(*at, data)) for at, data in changes.component_states.items() if data is not None
        ]
        self._many("DELETE FROM component_state WHERE component=?", components)
        self._many("DELETE FROM component_state WHERE component=? AND key=?", deleted)
        self._many("INSERT OR REPLACE INTO component_state VALUES(?, ?, ?, ?)", written)

    def _write_values(self, changes: Changes) -> None:
        self._write_value("meta", "commit_no", encode(self.commit_no))
        for kind, name, data in changes.all_values():
            self._write_value(kind, name, data)

    def _write_outboxes(self, changes: Changes) -> None:
        rows = [
            (sink, one.number, one.topic, one.key, one.payload, _output_crc(sink, one))
            for (sink, _), one in changes.outputs.items()
        ]
        self._many("DELETE FROM outbox WHERE sink=? AND number=?", changes.acked)
        self._many("INSERT OR REPLACE INTO outbox VALUES(?, ?, ?, ?, ?, ?)", rows)

    def _end(self) -> None:
        self._execute("COMMIT")

    # ---- reading; all methods raise StoreError --------------------------------------------------------------------

    def rows(self, newest: int | None = None) -> Iterator[StoredRow]:
        """Yield all streams, or the ``newest`` last written ones, in the order of their commits."""
        query = (
            "SELECT name, text, row, crc, commit_no FROM stream LEFT JOIN row_schema ON id = schema WHERE name IN"
            " (SELECT name FROM stream ORDER BY commit_no DESC, name DESC LIMIT ?) ORDER BY commit_no, name"
        )
        with self._tables():
            cursor = self._execute(query, (-1 if newest is None else newest,))
            while found := cursor.fetchmany(_FETCH_ROWS):
                for columns in found:
                    yield _stored_row(*columns)

    def row(self, name: str) -> StoredRow | None:
        """Return one stream; None if it was never committed."""
        query = "SELECT name, text, row, crc, commit_no FROM stream LEFT JOIN row_schema ON id = schema WHERE name=?"
        with self._tables(name):
            found = self._rows(query, (name,))
        return _stored_row(*found[0]) if found else None

    def count(self) -> int:
        """Return the number of streams."""
        with self._tables():
            return int(self._one("SELECT count(*) FROM stream"))

    def count_known(self) -> int:
        """Return the number of names that have a row or a component state."""
        query = "SELECT count(*) FROM (SELECT name FROM stream UNION SELECT key FROM component_state)"
        with self._tables():
            return int(self._one(query))

    def value(self, key: str, default: T) -> T:
        """Return a value of `Commit.numbers` or `Commit.texts`; the default if it has another type or none."""
        with self._tables():
            return self._value("meta", key, type(default), default)

    def schemas(self) -> list[str]:
        """Return the schemas of all rows."""
        query = "SELECT text FROM row_schema WHERE id IN (SELECT DISTINCT schema FROM stream) ORDER BY id"
        with self._tables():
            return [text for (text,) in self._rows(query)]

    def names(self) -> list[str]:
        """Return the names of all streams, sorted."""
        with self._tables():
            return [name for (name,) in self._rows("SELECT name FROM stream ORDER BY name")]

    def states_of_stream(self, name: str) -> dict[str, bytes | None]:
        """Return the states of a stream by component; None for one with a wrong checksum."""
        with self._tables(name):
            found = self._rows("SELECT component, data, crc FROM component_state WHERE key=?", (name,))
        return {component: verified(data, crc, component, name) for component, data, crc in found}

    def states_of_component(self, component: str) -> dict[str, bytes | None]:
        """Return the states of a component by key; None for one with a wrong checksum."""
        query = "SELECT key, data, crc FROM component_state WHERE component=? ORDER BY key"
        with self._tables():
            found = self._rows(query, (component,))
        return {key: verified(data, crc, component, key) for key, data, crc in found}

    def components(self) -> list[str]:
        """Return the names of all components with a state."""
        with self._tables():
            return [component for (component,) in self._rows("SELECT DISTINCT component FROM component_state")]

    def positions(self) -> dict[str, Position]:
        """Return the position of each source."""
        with self._tables():
            return {source: position_of(at) for source, at in self._values("position", Position).items()}

    def packets(self, source: str) -> dict[int, bytes]:
        """Return the processed packets of a source, oldest first."""
        return dict(self._changes.packets.get(source, {}))

    def sink_checkpoint(self, sink: str) -> SinkCheckpoint:
        """Return what a sink needs to continue; outputs with a wrong checksum are logged and deleted."""
        query = "SELECT topic, payload, key, number, crc FROM outbox WHERE sink=? ORDER BY number"
        with self._tables():
            found = [(OutboxRow(*columns), crc) for *columns, crc in self._rows(query, (sink,))]
            damaged = {(sink, row.number) for row, crc in found if crc != _output_crc(sink, row)}
            self._many("DELETE FROM outbox WHERE sink=? AND number=?", damaged)
            offset = self._values("file_offset", FileOffset).get(sink)
            last = self._value("output", sink, int, 0)
        if damaged:
            log.error("sink %s: %d outputs have a wrong checksum and are deleted: check the disk", sink, len(damaged))
        return SinkCheckpoint(offset, [row for row, _ in found if (sink, row.number) not in damaged], last)

    def file_offsets(self) -> dict[str, FileOffset]:
        """Return the durable length of each sink's file."""
        with self._tables():
            return self._values("file_offset", FileOffset)

    def outputs_waiting(self) -> dict[str, int]:
        """Return the number of outputs in each sink's outbox."""
        with self._tables():
            return dict(self._rows("SELECT sink, count(*) FROM outbox GROUP BY sink"))

    # ---- deleting on request; all methods raise StoreError --------------------------------------------------------

    def delete_outbox(self, sink: str) -> None:
        """Delete the outputs of a sink."""
        with self._tables():
            self._execute("DELETE FROM outbox WHERE sink=?", (sink,))

    def delete_file_offset(self, sink: str) -> None:
        """Delete the durable length of a sink's file."""
        with self._tables():
            self._delete_value("file_offset", sink)

    def delete_position(self, source: str) -> None:
        """Delete the position of a source, which then starts at the beginning."""
        with self._tables():
            self._delete_value("position", source)

    def delete_streams(self, names: Sequence[str]) -> None:
        """Delete streams with their component states, all or none."""
        with self._tables():
            self._execute("BEGIN IMMEDIATE")
            self._delete_streams(names)
            self._end()

    # ---- SQLite ---------------------------------------------------------------------------------------------------

    def _schema_id(self, text: str) -> int:
        if text not in self._schemas:
            cursor = self._execute("INSERT INTO row_schema(text) VALUES(?)", (text,))
            self._schemas[text] = int(cursor.lastrowid or 0)
        return self._schemas[text]

    @contextmanager
    def _tables(self, stream: str | None = None) -> Iterator[None]:
        """Use the tables, with all that the log has; ``stream``: with all that it has of this one."""
        with self._sqlite_errors():
            if stream is None or self._changes.concerns(stream):
                self._write_log_to_tables()
            yield

    def _write_log_to_tables(self) -> None:
        if self._changes:
            with self._counting():
                self._execute("BEGIN IMMEDIATE")
                self._write_tables()
                self._end()

    @contextmanager
    def _counting(self) -> Iterator[None]:
        before = disk_bytes("thread-self")
        yield
        self.disk_bytes += disk_bytes("thread-self") - before


def _stored_row(name: str, schema: str | None, row: object, crc: object, commit_no: int) -> StoredRow:
    return StoredRow(name, schema or "", verified(row, crc, name, schema or ""), commit_no)


def _output_crc(sink: str, row: OutboxRow) -> int:
    return checksum(sink, str(row.number), row.topic, row.key, row.payload)
