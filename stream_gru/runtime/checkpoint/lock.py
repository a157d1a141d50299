"""One process per state directory, on a disk where locks and syncs are reliable."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path

from stream_gru.core.errors import StoreError, StoreLocked

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
