"""Checks of run.state_dir: the disk, who has it, what is in it, and how long the disk takes to keep its word.

Nothing of it is changed.  The store is not opened as the daemon does: that would take its lock, and move a damaged file
aside.  It is read only while no process has it, and only when it was closed well: then no log belongs to it.
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

from stream_gru.cli.doctor_check import Check, State
from stream_gru.core.errors import StoreError
from stream_gru.runtime.checkpoint.lock import require_local
from stream_gru.runtime.checkpoint.store import FILE_NAME

_MIB = 1_048_576
_BLOCK = bytes(4096)
_SYNCS = 20
_SYNCS_S = 1.0  # a slow disk is known after fewer of them
_SHARE_WARN = 0.25


def check_state(folder: Path, commit_s: float, now_s: float | None = None) -> Iterator[Check]:
    """What is in ``folder``, and whether its disk is fast enough for a commit every ``commit_s`` seconds."""
    name = f"state {folder}"
    if "$" in str(folder):
        yield Check(
            name, State.WARN, "a variable in it is not set here", "set it: STATE_DIRECTORY=... stream-gru doctor"
        )
        return
    try:
        require_local(folder)
    except StoreError as error:
        yield Check(name, State.FAIL, str(error), "choose a folder on a disk of this machine: state_dir in [run]")
        return
    yield _store(name, folder, time.time() if now_s is None else now_s)
    yield from _speed(f"sync {folder}", folder, commit_s)


def _store(name: str, folder: Path, now_s: float) -> Check:
    """The store as far as it can be known without opening it as a daemon would."""
    path = folder / FILE_NAME
    try:
        aside = sorted(one.name for one in folder.glob(f"{FILE_NAME}.damaged-*") if not one.name.endswith("-wal"))
        size, log_size, written_s = _facts(path)
        holder = _holder(folder / "lock")
    except FileNotFoundError:
        return _with_aside(Check(name, State.OK, "nothing yet: the first start of the daemon makes it"), aside)
    except OSError as error:
        advice = "run this as the user of the daemon, or as root"
        return Check(name, State.FAIL, f"{error.filename}: {error.strerror}", advice)
    facts = f"{(size + log_size) / _MIB:,.1f} MiB, last written {_ago(now_s - written_s)}"
    if holder is not None:
        return _with_aside(Check(name, State.OK, f"{holder} has it; {facts}"), aside)
    if log_size:
        found = f"free; {facts}; the last run was killed, the next one goes on behind its last commit"
        return _with_aside(Check(name, State.OK, found), aside)
    try:
        return _with_aside(Check(name, State.OK, f"free; {_content(path)}, {facts}"), aside)
    except sqlite3.Error as error:
        advice = "keep a copy of the folder: the next start moves this file aside, and all streams begin anew"
        return Check(name, State.WARN, f"free; {facts}; cannot be read: {error}", advice)


def _facts(path: Path) -> tuple[int, int, float]:
    """Bytes of the file and of its log, and when they were last written.  Raises OSError."""
    file = path.stat()
    try:
        log_file = path.with_name(f"{path.name}-wal").stat()
    except FileNotFoundError:
        return file.st_size, 0, file.st_mtime
    return file.st_size, log_file.st_size, max(file.st_mtime, log_file.st_mtime)


def _holder(lock: Path) -> str | None:
    """Who has the store; None for nobody.  The lock is asked for and given back at once.  Raises OSError."""
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        number = os.pread(handle, 32, 0).decode(errors="replace").strip()
        return f"process {number}" if number.isdigit() else "another process"
    finally:
        os.close(handle)
    return None


def _content(path: Path) -> str:
    """What a file says that nobody writes; no lock is taken and nothing is written.  Raises sqlite3.Error."""
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        streams = connection.execute("SELECT count(*) FROM stream").fetchone()[0]
        commit_no = connection.execute("SELECT max(value) FROM meta WHERE key='commit_no'").fetchone()[0]
        waiting = connection.execute("SELECT count(*) FROM outbox").fetchone()[0]
    return f"{streams:,} streams, commit {commit_no or 0:,}, {waiting:,} outputs wait"


def _with_aside(check: Check, aside: list[str]) -> Check:
    """The check, worse by damaged files that lie beside the store."""
    if not aside:
        return check
    found = f"{check.found}\nwas damaged and moved aside: {', '.join(aside)}"
    return Check(check.name, State.WARN, found, "look at the disk (dmesg), then delete what was moved aside")


def _speed(name: str, folder: Path, commit_s: float) -> Iterator[Check]:
    """How long one sync takes where the store is, or will be: a commit waits for one at least."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK):  # told by the check of the folder
        return
    try:
        seconds = _sync_s(there)
    except OSError as error:
        yield Check(name, State.FAIL, f"{there}: {error.strerror}", "the daemon would end with its first commit")
        return
    found = f"p50 {1e3 * seconds:.1f} ms, a commit every {commit_s:g} s"
    if seconds <= _SHARE_WARN * commit_s:
        yield Check(name, State.OK, found)
        return
    advice = f"commits take more than {_SHARE_WARN:.0%} of the time: raise commit_s in [run], or take a faster disk"
    yield Check(name, State.WARN, found, advice)


def _sync_s(folder: Path) -> float:
    """Median of the seconds until a small write is on the disk.  Raises OSError."""
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
    """An age in the unit that suits it."""
    if seconds < 0:
        return "in the future: was the clock changed?"
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
