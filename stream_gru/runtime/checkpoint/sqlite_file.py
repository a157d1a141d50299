"""The database file: how it is opened, its tables, and what becomes of a damaged one.

Settings: write-ahead log with a sync at each commit (a commit survives a power cut on a disk that keeps its word), one
exclusive connection that belongs to one thread.  Source: SQLite, "PRAGMA Statements".

Decision: a file that fails its check is moved aside and never repaired.  What would come out of it could look right and
be wrong; the broker still has what was not acknowledged, and a stream that begins anew says so.
"""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

from stream_gru.connectors.fsync import sync_folder
from stream_gru.core.errors import StoreError
from stream_gru.runtime.checkpoint.wal_check import commits_in

log = logging.getLogger(__name__)

# Rises with every change of the tables, be it a blank, and the older ones are then rewritten before they are checked.
_VERSION = 1
_APPLICATION = 0x5347_5255  # "SGRU"
_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE form(id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE stream(
    name TEXT PRIMARY KEY, form INTEGER NOT NULL, commit_no INTEGER NOT NULL, row BLOB NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE memory(
    part TEXT, name TEXT, data BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY(name, part)
) WITHOUT ROWID;
CREATE TABLE position(source TEXT PRIMARY KEY, name TEXT NOT NULL, offset INTEGER NOT NULL, proof TEXT NOT NULL);
CREATE TABLE packet(
    source TEXT, id INTEGER, digest BLOB NOT NULL, number INTEGER NOT NULL, PRIMARY KEY(source, id)
) WITHOUT ROWID;
CREATE TABLE mark(sink TEXT PRIMARY KEY, path TEXT NOT NULL, offset INTEGER NOT NULL, detail TEXT NOT NULL);
CREATE TABLE outbox(
    sink TEXT, number INTEGER, topic TEXT NOT NULL, key TEXT NOT NULL, payload BLOB NOT NULL, PRIMARY KEY(sink, number)
) WITHOUT ROWID;
CREATE TABLE counter(sink TEXT PRIMARY KEY, last INTEGER NOT NULL);
"""
_LOG_BYTES = 8_388_608
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT")


class Damaged(Exception):
    """The file is no database, or one that contradicts itself."""


class _DamagedOpen(Damaged):
    """``connection`` is open: SQLite would write the log into the file and delete it, were the file not moved first."""

    def __init__(self, why: str, connection: sqlite3.Connection) -> None:
        super().__init__(why)
        self.connection = connection


def open_database(
    path: Path, wall_s: Callable[[], float] = time.time, repair: bool = True
) -> tuple[sqlite3.Connection, Path | None]:
    """Open the file, or make it; return it and, when the one that was there is damaged, where that was moved to.

    ``repair`` False: a damaged one stays.  Raises StoreError for that, when it cannot be opened, or was written by a
    newer version.
    """
    try:
        return _opened(path), None
    except _DamagedOpen as error:
        if not repair:
            _close_unchanged(error.connection, path)
            raise StoreError(
                f"{path}: damaged ({error}): keep a copy of the folder; "
                "the next start of the daemon moves this file aside, and all streams begin anew"
            ) from error
        with closing(error.connection):
            aside = _move_aside(path, wall_s())
        log.error("%s: damaged (%s): moved to %s; all streams begin anew", path, error, aside.name)
    try:
        return _opened(path), aside
    except _DamagedOpen as error:
        error.connection.close()
        raise StoreError(f"{path}: damaged at once again ({error}): the disk cannot be trusted") from error


def _opened(path: Path) -> sqlite3.Connection:
    """Raises _DamagedOpen, StoreError."""
    try:
        new = not path.exists()
        commits = commits_in(path.with_name(path.name + "-wal"))
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, timeout=0.0)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path}: cannot be opened: {error}") from error
    try:
        _set_up(connection, path, new)
        _check_log(connection, commits)
    except Damaged as error:
        raise _DamagedOpen(str(error), connection) from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorname", "").startswith(_DAMAGED):
            raise _DamagedOpen(str(error), connection) from error
        connection.close()
        raise StoreError(f"{path}: cannot be opened: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: sqlite3.Connection, path: Path, new: bool) -> None:
    """Raises sqlite3.Error, Damaged, StoreError."""
    connection.text_factory = _text
    # Exclusive before the log is first used: then no second process can open it, and no shared memory is needed.
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    strange = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0
    if strange and (version == 0 or application != _APPLICATION):
        raise Damaged("it has tables of another program")
    if version > _VERSION:
        raise StoreError(f"{path}: written by a newer version of stream-gru; expected version {_VERSION}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA wal_autocheckpoint=1000")
    connection.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")  # else a log that was large once stays so
    connection.execute("PRAGMA cell_size_check=ON")
    if version == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id={_APPLICATION}; PRAGMA user_version={_VERSION}; COMMIT"
        )
    if new:
        sync_folder(path.parent)
    # The check below does not look into the words that say what a table is.
    tables = {text for (text,) in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
    if tables != {text.strip() for text in _SCHEMA.split(";") if text.strip()}:
        raise Damaged("its tables are not those of this version")
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise Damaged(" ".join(str(found).split()))


def _check_log(connection: sqlite3.Connection, commits: Sequence[int]) -> None:
    """Make sure that SQLite has found all commits of the log but, perhaps, the last one.  Raises Damaged."""
    _, found, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    lost = sum(number > found for number in commits)
    if lost > 1:
        raise Damaged(f"its log is broken before {lost} commits")


def _text(data: bytes) -> str:
    """Text that a disk has damaged is another text, and no reason not to start."""
    return data.decode(errors="replace")


def _close_unchanged(connection: sqlite3.Connection, path: Path) -> None:
    """Close a damaged file, and leave it and its log as they are."""
    copy = path.with_name(f"{path.name}.copy")
    with closing(connection), suppress(OSError):
        # SQLite touches neither once another file has the name: one of the same bytes.
        shutil.copy(path, copy)
        with copy.open("rb") as file:
            os.fsync(file.fileno())
        copy.replace(path)


def _move_aside(path: Path, wall_s: float) -> Path:
    """Rename a damaged file and its log; return the new name.  Raises StoreError."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(wall_s))
    names = (f"{path.name}.damaged-{stamp}{f'.{n}' if n else ''}" for n in range(10_000))
    target = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    try:
        path.rename(target)
        log_file = path.with_name(path.name + "-wal")
        if log_file.exists():
            log_file.rename(target.with_name(target.name + "-wal"))
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: damaged, and cannot be moved aside: {error.strerror}") from error
    return target
