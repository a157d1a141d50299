"""One process at a time, and a disk on which a lock and a sync mean something."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from stream_gru.core.errors import StoreError, StoreLocked

_REMOTE = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "glusterfs", "davfs")
_MOUNTS = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")  # how blanks stand in it


class StoreLock:
    """A file that its holder has locked and written its process number into.  The system frees it with the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: int | None = None

    def acquire(self) -> None:
        """Lock.  Raises StoreLocked when another process has it, StoreError when the file cannot be made."""
        if self._handle is not None:
            return
        try:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be made: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            os.close(handle)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise StoreLocked(
                f"{self._path.parent}: {who} uses this state; stop it, or give each daemon a run.state_dir of its own"
            ) from error
        self._handle = handle
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise StoreError(f"{self._path}: cannot be written: {error.strerror}") from error

    def release(self) -> None:
        """Let another process have it; may be called twice."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def require_local(folder: Path, mounts: Path = _MOUNTS) -> None:
    """Refuse network file systems: there another machine may hold the lock, and a sync may mean nothing.

    Raises StoreError.
    """
    kind = _file_system(folder.resolve(), mounts)
    if kind.startswith(_REMOTE):
        raise StoreError(f"{folder}: is on {kind}; state needs a disk of this machine: choose another run.state_dir")


def _file_system(folder: Path, mounts: Path) -> str:
    """The type of the file system that holds a folder; empty where nobody says."""
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
