"""Where in a row of files reading goes on, and which files had come before.

The third part of a `Position.check` holds six characters for the name of each file before the one in hand: a file that
appears among them later is not read any more, and told.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from stream_gru.connectors.sources.fingerprint import begin_anew, digest
from stream_gru.core.errors import DataError
from stream_gru.core.types import Position

log = logging.getLogger(__name__)

_CHARACTERS = 6
_MAX_NAMES = 500  # of more files only those nearest to the one in hand are known


def gone(position: Position, name: str, unit: str = "byte") -> DataError:
    """The error for a file that was being read and cannot be found."""
    return DataError(
        f"{position.name}: was read up to {unit} {position.offset:,} and is no longer among the input; expected it "
        f"there; give it back, or {begin_anew(name)}"
    )


def earlier_names(paths: Sequence[Path], begin: int) -> Iterator[tuple[Path, str]]:
    """Yield each file from ``begin`` on, and what its positions keep of those before it, with a space before it."""
    marks = [_mark(path) for path in paths]
    for place, path in enumerate(paths[begin:], begin):
        earlier = "".join(marks[max(0, place - _MAX_NAMES) : place])
        yield path, f" {earlier}" if earlier else ""


def place_among(paths: Sequence[Path], position: Position, name: str) -> int:
    """The index of the file of ``position``.  Raises DataError; warns of new files before it, which are not read."""
    names = [str(path) for path in paths]
    if position.name not in names:
        raise gone(position, name)
    place = names.index(position.name)
    new = _new_among(paths[:place], position)
    if new:
        more = f" and {len(new) - 1:,} more" if len(new) > 1 else ""
        log.warning(
            "%s: %s%s came after its turn and is not read: reading goes on in %s, which stands behind it",
            name, new[0], more, position.name,
        )  # fmt: skip
    return place


def _new_among(paths: Sequence[Path], position: Position) -> list[Path]:
    _, _, kept = position.fingerprint.partition(" ")[2].partition(" ")
    if not position.fingerprint:
        return []
    known = {kept[i : i + _CHARACTERS] for i in range(0, len(kept), _CHARACTERS)}
    new = [path for path in paths if _mark(path) not in known]
    if len(known) < _MAX_NAMES:
        return new
    first = next((place for place, path in enumerate(paths) if _mark(path) in known), len(paths))
    return [path for path in paths[first:] if _mark(path) not in known]


def _mark(path: Path) -> str:
    return digest(str(path).encode(errors="surrogateescape"))[:_CHARACTERS]
