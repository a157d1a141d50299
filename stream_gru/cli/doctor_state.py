"""Checks of run.state_dir: the disk, the process that holds the store, its content, and the time of a sync.

These checks change nothing.  Opening the store as the daemon does would take the lock and move a damaged file aside, so
they only read it while no process holds it, and after a clean shutdown, when it has no write-ahead log.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median

from stream_gru.connectors.folders import disk_bytes, nearest_existing
from stream_gru.core.checks import Check, State
from stream_gru.core.errors import StoreError
from stream_gru.runtime.checkpoint.sqlite_file import require_local
from stream_gru.runtime.checkpoint.store import FILE_NAME

_MIB = 1_048_576
_BLOCK = bytes(4096)
_SYNCS = 20
_SYNCS_S = 1.0  # fewer syncs suffice on a slow disk
_SHARE_WARN = 0.25
_WEAR_S = 60.0  # a shorter run says nothing
_CARD_BYTES = 10e12


def check_state(folder: Path, commit_interval_s: float, now_s: float | None = None) -> Iterator[Check]:
    """Check the store in ``folder``, and that its disk is fast enough for a commit every ``commit_interval_s``."""
    name = f"state {folder}"
    if "$" in str(folder):
        yield Check(
            name,
            State.WARN,
            "expected set environment variables",
            "set them, such as: STATE_DIRECTORY=/var/lib/stream-gru stream-gru doctor ...",
        )
        return
    try:
        require_local(folder)
    except StoreError as error:
        yield Check(name, State.FAIL, str(error), "choose a folder on a local disk: state_dir in [run]")
        return
    yield _store(name, folder, time.time() if now_s is None else now_s)
    yield from _speed(f"sync {folder}", folder, commit_interval_s)


def _store(name: str, folder: Path, now_s: float) -> Check:
    """Check the store without opening it as the daemon does."""
    path = folder / FILE_NAME
    try:
        aside = sorted(one.name for one in folder.glob(f"{FILE_NAME}.damaged-*") if not one.name.endswith("-wal"))
        size, log_size, written_s = _facts(path)
        holder = _holder(folder / "lock")
    except FileNotFoundError:
        return _with_aside(Check(name, State.OK, "no store yet; the daemon creates it at its first start"), aside)
    except OSError as error:
        advice = "run the doctor as the user of the daemon, or as root"
        return Check(name, State.FAIL, f"{error.filename}: {error.strerror}", advice)
    facts = f"{(size + log_size) / _MIB:,.1f} MiB, last written {_ago(now_s - written_s)}"
    if holder is not None:
        return _with_aside(Check(name, State.OK, f"held by process {holder or '?'}; {facts}{_wear(holder)}"), aside)
    if log_size:
        found = f"free; {facts}; unclean shutdown, the next run resumes from the last commit"
        return _with_aside(Check(name, State.OK, found), aside)
    try:
        return _with_aside(Check(name, State.OK, f"free; {_content(path)}, {facts}"), aside)
    except sqlite3.Error as error:
        advice = "copy the folder first: the next start moves this file aside and resets all streams"
        return Check(name, State.WARN, f"free; {facts}; not readable: {error}", advice)


def _facts(path: Path) -> tuple[int, int, float]:
    """Bytes of the file, bytes of its write-ahead log, and the time of the last write.  Raises OSError."""
    file = path.stat()
    try:
        log_file = path.with_name(f"{path.name}-wal").stat()
    except FileNotFoundError:
        return file.st_size, 0, file.st_mtime
    return file.st_size, log_file.st_size, max(file.st_mtime, log_file.st_mtime)


def _holder(lock: Path) -> str | None:
    """The number of the process that holds the lock, empty if unknown; None if it is free.

    Takes and releases a shared lock.  Raises OSError.
    """
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        number = os.pread(handle, 32, 0).decode(errors="replace").strip()
        return number if number.isdigit() else ""
    finally:
        os.close(handle)
    return None


def _wear(process: str) -> str:
    """What the process writes to disks in a day, and how long a memory card stands that; empty if it is not known."""
    written, seconds = (disk_bytes(process), _age_s(process)) if process else (0, 0.0)
    if not written or seconds < _WEAR_S:
        return ""
    daily = written / seconds * 86_400
    years = _CARD_BYTES / daily / 365
    return (
        f"\nwrites {daily / 1e9:,.2g} GB a day to disks, outputs included: "
        f"a card rated for {_CARD_BYTES / 1e12:.0f} TBW lasts {years:,.1f} years"
    )


def _age_s(process: str) -> float:
    """Seconds since a process started; 0 if that is unknown."""
    try:
        after_name = Path("/proc", process, "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        uptime_s = float(Path("/proc/uptime").read_text("ascii").split()[0])
        return uptime_s - int(after_name[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def _content(path: Path) -> str:
    """Counts from a store that no process holds, without a lock or a write.  Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        streams = connection.execute("SELECT count(*) FROM stream").fetchone()[0]
        pending = connection.execute("SELECT count(*) FROM outbox").fetchone()[0]
    return f"{streams:,} streams, {pending:,} outputs pending"


def _with_aside(check: Check, aside: list[str]) -> Check:
    """The check, with a warning about damaged files beside the store."""
    if not aside:
        return check
    found = f"{check.found}\ndamaged files, moved aside: {', '.join(aside)}"
    return Check(check.name, State.WARN, found, "check the disk with dmesg, then delete these files")


def _speed(name: str, folder: Path, commit_interval_s: float) -> Iterator[Check]:
    """Check the time of one sync on the disk of the store; a commit needs at least one."""
    existing = nearest_existing(folder)
    if not os.access(existing, os.W_OK | os.X_OK):  # reported by the check of the folder
        return
    try:
        seconds = _sync_s(existing)
    except OSError as error:
        yield Check(name, State.FAIL, f"{existing}: {error.strerror}", "free disk space or choose another folder")
        return
    found = f"p50 {1e3 * seconds:.1f} ms, a commit every {commit_interval_s:g} s"
    if seconds <= _SHARE_WARN * commit_interval_s:
        yield Check(name, State.OK, found)
        return
    advice = f"commits take over {_SHARE_WARN:.0%} of the time: raise commit_interval_s in [run], or use a faster disk"
    yield Check(name, State.WARN, found, advice)


def _sync_s(folder: Path) -> float:
    """Median seconds of a small write and its sync.  Raises OSError."""
    times: list[float] = []
    end = time.perf_counter() + _SYNCS_S
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".stream-gru-doctor-", buffering=0) as file:
        while len(times) < _SYNCS and (time.perf_counter() < end or len(times) < 3):
            begin = time.perf_counter()
            file.write(_BLOCK)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - begin)
    return median(times)


def _ago(seconds: float) -> str:
    """An age in seconds, minutes, hours or days."""
    if seconds < 0:
        return "in the future; check the clock"
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
