"""Opens the database file: its tables, settings and checks, and what happens to a damaged file.

Settings: write-ahead log with a sync at each commit (a commit survives a power cut if the disk honours syncs), one
exclusive connection on one thread.  Each row carries a checksum.  Source: SQLite, "PRAGMA Statements".

Decision: a file that fails its check is moved aside, never repaired.  A repaired file could look right and be wrong;
the broker still has what was not acknowledged, and a stream that is reset reports the reason.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from stream_gru.connectors.folders import sync_folder
from stream_gru.core.errors import StoreError, StoreLocked

log = logging.getLogger(__name__)

T = TypeVar("T")

# Goes up with every change of the tables, even of white space: their SQL is compared as text.
FORMAT = 3
_APPLICATION = 0x5347_5255  # "SGRU"
_SCHEMA = """
CREATE TABLE log(commit_no INTEGER PRIMARY KEY, data BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE value(
    kind TEXT, name TEXT, data BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY(kind, name)
) WITHOUT ROWID;
CREATE TABLE row_schema(id INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE stream(
    name TEXT PRIMARY KEY, schema INTEGER NOT NULL, commit_no INTEGER NOT NULL, row BLOB NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE component_state(
    component TEXT, key TEXT, data BLOB NOT NULL, crc INTEGER NOT NULL, PRIMARY KEY(key, component)
) WITHOUT ROWID;
CREATE TABLE outbox(
    sink TEXT, number INTEGER, topic TEXT NOT NULL, key TEXT NOT NULL, payload BLOB NOT NULL, crc INTEGER NOT NULL,
    PRIMARY KEY(sink, number)
) WITHOUT ROWID;
"""
_CHECKPOINT_PAGES = 16_384
_WAL_BYTES = 4096 * _CHECKPOINT_PAGES
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_FORMAT")


class Damaged(Exception):
    """The file is not a database, or its content is inconsistent."""


class _DamagedOpen(Damaged):
    """``connection`` is open: closing it before the file is moved would merge the log into the file and delete it."""

    def __init__(self, reason: str, connection: sqlite3.Connection) -> None:
        super().__init__(reason)
        self.connection = connection


def checksum(*parts: str | bytes) -> int:
    """Return the CRC-32 of all parts and of their lengths."""
    value = 0
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        value = zlib.crc32(data, zlib.crc32(len(data).to_bytes(8, "little"), value))
    return value


def verified(data: Any, crc: Any, *owner: str) -> bytes | None:
    """Return ``data`` if ``crc`` is the `checksum` of its owner's names and of it, else None."""
    return data if isinstance(data, bytes) and crc == checksum(*owner, data) else None


def open_database(
    path: Path, wall_s: Callable[[], float], repair: bool, read: Callable[[sqlite3.Connection, bool], None]
) -> tuple[sqlite3.Connection, Path | None]:
    """Open or create the file; return the connection and where a damaged file was moved to, else None.

    ``wall_s``: seconds since 1970, for the name of a moved file.  ``repair`` False: a damaged file is not moved but an
    error.  ``read`` checks the content, told whether the write-ahead log existed, and raises Damaged.  Raises
    StoreError for a damaged file, for a file that cannot be opened, and for one of another format.
    """
    try:
        return _opened(path, read), None
    except _DamagedOpen as error:
        if not repair:
            _close_unchanged(error.connection, path)
            raise StoreError(
                f"{path}: damaged ({error}): keep a copy of the directory; "
                "the next start of the daemon moves this file aside and resets all streams"
            ) from error
        with closing(error.connection):
            aside = _move_aside(path, wall_s())
        log.error("%s: damaged (%s): moved to %s; all streams are reset", path, error, aside.name)
    try:
        return _opened(path, read), aside
    except _DamagedOpen as error:
        error.connection.close()
        raise StoreError(f"{path}: a new file is damaged too ({error}): check the disk") from error


def _opened(path: Path, read: Callable[[sqlite3.Connection, bool], None]) -> sqlite3.Connection:
    """Open the file and check it.  Raises _DamagedOpen, StoreError."""
    wal = path.with_name(path.name + "-wal")
    try:
        new = not path.exists()
        has_log, commits = wal.exists(), commits_in(wal)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, timeout=0.0)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path}: cannot be opened: {error}") from error
    try:
        _set_up(connection, path, new)
        _check_log(connection, commits)
        read(connection, has_log)
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
    """Set options, create missing tables, check the file.  Raises sqlite3.Error, Damaged, StoreError."""
    connection.text_factory = _text
    # Exclusive before the log is first used: no second process can open it, and no shared memory is needed.
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    has_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0
    if has_tables and (found == 0 or application != _APPLICATION):
        raise Damaged("its tables belong to another program")
    if found not in (0, FORMAT):
        raise StoreError(
            f"{path}: expected format {FORMAT}, got {found}: another version of stream-gru wrote it; "
            "run that version, or set another run.state_dir to start with new states"
        )
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    # Pages change again and again: the rarer a checkpoint, the fewer copies of them reach the file.
    connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")  # else a log that was large once never shrinks
    connection.execute("PRAGMA secure_delete=OFF")  # some distributions overwrite what is deleted
    connection.execute("PRAGMA cell_size_check=ON")
    if found == 0:
        connection.executescript(
            f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA application_id={_APPLICATION}; PRAGMA user_version={FORMAT}; COMMIT"
        )
    if new:
        sync_folder(path.parent)
    # quick_check does not verify the SQL of the tables.
    tables = {text for (text,) in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
    if tables != {text.strip() for text in _SCHEMA.split(";") if text.strip()}:
        raise Damaged(f"its tables are not those of format {FORMAT}")
    result = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if result != "ok":
        raise Damaged(" ".join(str(result).split()))


def _check_log(connection: sqlite3.Connection, commits: Sequence[int]) -> None:
    """Check that SQLite has read all commits of the log except perhaps the last.  Raises Damaged."""
    _, found, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    lost = sum(number > found for number in commits)
    if lost > 1:
        raise Damaged(f"its log is broken before {lost} commits")


def _text(data: bytes) -> str:
    """Decode text; damaged text becomes other text instead of an error at the start."""
    return data.decode(errors="replace")


def _close_unchanged(connection: sqlite3.Connection, path: Path) -> None:
    """Close a damaged file without any change to it or its log."""
    copy = path.with_name(f"{path.name}.copy")
    with closing(connection), suppress(OSError):
        # SQLite leaves file and log alone once another file has the name: a copy of the same bytes.
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


_REMOTE = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "glusterfs", "davfs")
_MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")  # the escape of spaces in that file


class StoreLock:
    """A locked file that contains the process id of its holder.  The kernel releases it when the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def acquire(self) -> None:
        """Lock.  Raises StoreLocked when another process holds the lock, StoreError when the file cannot be created."""
        if self._handle is not None:
            return
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be created: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise StoreLocked(
                f"{self._path.parent}: {who} uses this state; stop it, or give each daemon its own run.state_dir"
            ) from error
        self._handle = handle
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise StoreError(f"{self._path}: cannot be written: {error.strerror}") from error

    def release(self) -> None:
        """Unlock; may be called twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def require_local(folder: Path, mounts: Path = _MOUNTS) -> None:
    """Reject network file systems: another machine could hold the lock, and a sync may not reach a disk.

    Raises StoreError.
    """
    kind = _file_system(folder.resolve(), mounts)
    if kind.startswith(_REMOTE):
        raise StoreError(f"{folder}: expected a local disk, got {kind}: choose another run.state_dir")


def _file_system(folder: Path, mounts: Path) -> str:
    """Return the type of the file system that holds a folder; "" if it is unknown."""
    try:
        lines = os.fsdecode(mounts.read_bytes()).split("\n")
    except OSError:
        return ""
    best, kind = "", ""
    for line in lines:
        fields = line.split(" ")
        place = _OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4]) if len(fields) > 6 else ""
        holds = folder == Path(place) or Path(place) in folder.parents
        if place and holds and len(place) >= len(best) and "-" in fields:
            best, kind = place, fields[fields.index("-") + 1]
    return kind


_HEADER = struct.Struct(">IIIIIIII")  # magic, version, page size, number of the checkpoint, two salts, two checksums
_FRAME = struct.Struct(">IIIIII")  # page, size of the database after a commit (else 0), two salts, two checksums


def commits_in(path: Path) -> list[int]:
    """Return the numbers of the frames that end a commit, counted from 1; only those with the salt of the header.

    Raises OSError.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return []
    with file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return []
        _, _, page_bytes, _, *salt, _, _ = _HEADER.unpack(header)
        if page_bytes not in {2**power for power in range(9, 17)}:
            page_bytes = 4096
        frames = []
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            _, size, *frame_salt, _, _ = _FRAME.unpack(head)
            frames.append((tuple(frame_salt), size))
            file.seek(page_bytes, 1)
    # SQLite reuses the file with a new salt: frames with another salt are left over and no longer valid.
    return [number for number, (frame_salt, size) in enumerate(frames, 1) if frame_salt == tuple(salt) and size]


class Run(IntEnum):
    """How the last run ended: as requested, not at all, or after a failure that the store outlived."""

    CLEAN = 0
    RUNNING = 1
    FAILED = 2


class Database:
    """An open database and its statements; SQLite's errors become StoreError.  Used by one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._connection is not None

    def _require(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.path}: not open")
        return self._connection

    def _execute(self, text: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        return self._require().execute(text, values)

    def _many(self, text: str, rows: Iterable[Sequence[object]]) -> None:
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

    # ---- single values, by kind and name

    def _value(self, kind: str, name: str, form: type[T], default: T) -> T:
        found = self._rows("SELECT data FROM value WHERE kind=? AND name=?", (kind, name))
        return _decoded(found[0][0], form, default) if found else default

    def _values(self, kind: str, form: type[T]) -> dict[str, T]:
        found = self._rows("SELECT name, data FROM value WHERE kind=? ORDER BY name", (kind,))
        return {name: msgspec.msgpack.decode(data, type=form) for name, data in found}

    def _write_value(self, kind: str, name: str, data: bytes) -> None:
        row = (kind, name, data, checksum(kind, name, data))
        self._execute("INSERT OR REPLACE INTO value VALUES(?, ?, ?, ?)", row)

    def _delete_value(self, kind: str, name: str) -> None:
        self._execute("DELETE FROM value WHERE kind=? AND name=?", (kind, name))


def _decoded(data: bytes, form: type[T], default: T) -> T:
    """A stored value; the default when it is of another type."""
    try:
        return msgspec.msgpack.decode(data, type=form)
    except msgspec.ValidationError:
        return default
