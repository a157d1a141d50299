"""Names of files that were put aside: ``out.jsonl`` becomes ``out.20261121T101500Z.jsonl``, ``….1.jsonl`` the next."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from pathlib import Path

from stream_gru.connectors.fsync import sync_folder

log = logging.getLogger(__name__)


def aside_name(path: Path, wall_s: float) -> Path:
    """A name for a file to be put aside at the UTC time ``wall_s``, which no other one has.  Raises OSError.

    It sorts behind those that are there, also where the clock was set back: the newest file has the last name.
    """
    stem, suffix = _parts(path)
    now = datetime.fromtimestamp(wall_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    # Behind all others of this second, also where the first ones have been deleted since.
    time, n = max([(now, 0), *((time, n + 1) for time, n, _ in _numbered(path))])
    return path.with_name(f"{stem}.{time}.{n}.{suffix}" if n else f"{stem}.{time}.{suffix}")


def put_aside(path: Path, target: Path) -> None:
    """Rename a file, durably.  Raises OSError."""
    path.rename(target)
    sync_folder(path.parent)


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
