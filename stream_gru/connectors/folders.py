"""Disks: whether a folder can be written to, files and names that survive a power cut, how many bytes were written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from stream_gru.core.checks import Check, State

_MIB = 1_048_576
_DISK_WARN_BYTES, _DISK_FAIL_BYTES = 512 * _MIB, 16 * _MIB


def check_folder(folder: Path) -> Check:
    """Check that a folder is writable and has free space; for a missing folder, check its nearest parent."""
    name = f"disk {folder}"
    existing = nearest_existing(folder)
    if not existing.is_dir():
        return Check(name, State.FAIL, f"{existing}: expected a folder, found a file", "choose another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check(name, State.FAIL, f"{existing}: not writable by this user", f"sudo chown $USER {existing}")
    free = shutil.disk_usage(existing).free
    found = f"{free / _MIB:,.0f} MiB free"
    if free < _DISK_FAIL_BYTES:
        return Check(name, State.FAIL, found, "free disk space")
    if free < _DISK_WARN_BYTES:
        return Check(
            name, State.WARN, found, "free disk space, or rotate outputs: rotate_bytes and max_files in [[sink]]"
        )
    return Check(name, State.OK, found)


def nearest_existing(folder: Path) -> Path:
    """The folder itself, or the nearest of its parents that exists."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def write_private(path: Path, data: bytes) -> None:
    """Replace a file, durably and as a whole; only its owner may read it.  Raises OSError."""
    beside = path.with_name(path.name + ".new")
    with open(beside, "wb", opener=_private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    sync_folder(path.parent)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable.  Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_bytes(process: str = "self") -> int:
    """Return the bytes that a process, or ``thread-self``, has had written to disks; 0 where the kernel does not say.

    It counts pages of the cache that become dirty, also those that are deleted before they reach the disk.  Source:
    Linux, "The /proc Filesystem", write_bytes.
    """
    try:
        lines = Path("/proc", process, "io").read_text("ascii").splitlines()
        return next(int(line.partition(": ")[2]) for line in lines if line.startswith("write_bytes"))
    except (OSError, ValueError, StopIteration):
        return 0
