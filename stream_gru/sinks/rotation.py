"""Names of files that were put aside: ``out.jsonl`` becomes ``out.20261121T101500Z.jsonl``, ``….1.jsonl`` the next."""

from __future__ import annotations

import logging
import os
import re
from datetime import UTC, datetime
from pathlib import Path

log = logging.getLogger(__name__)


def put_aside(path: Path, wall_s: float) -> Path:
    """Rename a file to the UTC time ``wall_s``, never over another one; return its new name.  Raises OSError."""
    stem, suffix = _parts(path)
    time = datetime.fromtimestamp(wall_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    # Behind all others of this second, also where the first ones have been deleted since.
    n = max((n + 1 for other, n, _ in _numbered(path) if other == time), default=0)
    target = path.with_name(f"{stem}.{time}.{n}.{suffix}" if n else f"{stem}.{time}.{suffix}")
    path.rename(target)
    _sync_folder(path.parent)
    return target


def put_aside_files(path: Path) -> list[Path]:
    """The files that were put aside for ``path``, oldest first.  Raises OSError."""
    return [other for _, _, other in sorted(_numbered(path))]


def _numbered(path: Path) -> list[tuple[str, int, Path]]:
    """Time, number and name of each file that was put aside."""
    stem, suffix = _parts(path)
    form = re.compile(rf"{re.escape(stem)}\.(\d{{8}}T\d{{6}}Z)(?:\.(\d+))?\.{re.escape(suffix)}")
    named = [(form.fullmatch(other.name), other) for other in path.parent.iterdir()]
    return [(found[1], int(found[2] or 0), other) for found, other in named if found]


def keep_newest(path: Path, keep: int) -> None:
    """Delete all but the newest ``keep`` files that were put aside; what cannot be deleted is logged."""
    for old in put_aside_files(path)[:-keep]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be deleted: %s", old, error.strerror)


def _parts(path: Path) -> tuple[str, str]:
    """``out.jsonl.gz`` -> ``out`` and ``jsonl.gz``."""
    compressed = ".gz" if path.name.endswith(".gz") else ""
    stem, _, form = path.name.removesuffix(".gz").rpartition(".")
    return stem, form + compressed


def _sync_folder(folder: Path) -> None:
    """Make a new name durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
