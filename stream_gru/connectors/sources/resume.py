"""What a position keeps of a text that was read, so that the text is known again after a restart.

A `Position.check` of a text is ``HEAD TAIL``: digests of its first 64 KiB, as far as it was read, and of the last 512
bytes before the place.  A file that has only grown still passes.  Decision: not all of it is digested, which would take
longer than reading it; who changes the middle of a file and nothing else is not found out.

The third part of a check holds, for files, six characters for the name of each earlier file of the sequence: a file
that appears among them later is not read, with a warning.  For a pipe it holds the compressed beginning of the input:
the first byte that differs decides, and until then no message is returned.
"""

from __future__ import annotations

import logging
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from enum import Enum, auto
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from stream_gru.core.errors import DataError
from stream_gru.core.types import Position

_HEAD_BYTES = 65_536
_TAIL_BYTES = 512


class Trail:
    """Remembers of the bytes given to `add` the first ones and the last ones."""

    def __init__(self, head: bytes = b"", tail: bytes = b"", length: int = 0) -> None:
        self.head, self.tail, self.length = head, tail, length
        self._head_digest = digest(head)

    def add(self, data: bytes) -> None:
        """All of the text up to the end of ``data`` was read."""
        self.length += len(data)
        if len(self.head) < _HEAD_BYTES:
            self.head += data[: _HEAD_BYTES - len(self.head)]
            self._head_digest = ""
        self.tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self.tail + data)[-_TAIL_BYTES:]

    def check(self) -> str:
        """What a position at the end of the bytes so far keeps."""
        if not self._head_digest:
            self._head_digest = digest(self.head)
        return f"{self._head_digest} {blake2b(self.tail, digest_size=8).hexdigest()}"

    def difference(self, position: Position) -> str:
        """In what the text differs from that of ``position``, up to which it was added; ``""`` for nothing."""
        if self.length < position.offset:
            return f"it ends after {self.length:,} bytes"
        for known, found, what in zip(position.fingerprint.split(" "), self.check().split(" "), _WHAT, strict=False):
            if known and known != found:
                return f"{what} is another one"
        return ""


_WHAT = ("its beginning", "the text before that place")


def digest(data: bytes) -> str:
    """Sixteen characters that are others for other bytes."""
    return blake2b(data, digest_size=8).hexdigest()


def trail_up_to(file: BinaryIO, offset: int, begin: int = 0) -> Trail:
    """The trail of a text that begins at byte ``begin`` of ``file``, up to ``offset``, where the file then stands.

    Of a file that is too short it is as long as the file.
    """
    file.seek(begin)
    head = file.read(min(_HEAD_BYTES, offset))
    if offset <= len(head):
        return Trail(head, head[-_TAIL_BYTES:], offset)
    place = file.seek(begin + offset - _TAIL_BYTES)
    tail = file.read(_TAIL_BYTES)
    if not tail:  # a plain file can be told to stand behind its end
        place = min(place, file.seek(0, 2))
    return Trail(head, tail, max(0, place - begin) + len(tail))


def refused(where: str, position: Position, why: str, name: str, unit: str = "byte") -> DataError:
    """The error for an input that is not the one that ``position`` is of."""
    return DataError(
        f"{where}: was read up to {unit} {position.offset:,} and has changed since: {why}; give the old one back, or "
        f"{begin_anew(name)}"
    )


def begin_anew(name: str) -> str:
    """The next step for who wants an input to be read from its beginning again."""
    return f"begin anew with `stream-gru state reset CONFIG --source {name}`"


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


_BEGINNING_BYTES = 4096


class Verdict(Enum):
    """What is known of an input."""

    OPEN = auto()
    SAME = auto()
    NEW = auto()


class Beginning:
    """Compares bytes that come in portions with the beginning that ``position`` keeps; holds them until it is known.

    Raises ValueError when ``position`` keeps none that can be read.
    """

    def __init__(self, position: Position) -> None:
        self._known = _unpacked(position.fingerprint)
        self.held = b""

    def feed(self, data: bytes) -> Verdict:
        """Take the next portion; what came so far is in ``held``."""
        self.held += data
        length = min(len(self._known), len(self.held))
        if self.held[:length] != self._known[:length]:
            return Verdict.NEW
        return Verdict.SAME if length == len(self._known) else Verdict.OPEN


class PackedBeginning:
    """The beginning of a trail as a check keeps it, made once it is complete."""

    def __init__(self) -> None:
        self._packed, self._length = "", -1

    def of(self, trail: Trail) -> str:
        """At most four KiB."""
        length = min(_BEGINNING_BYTES, len(trail.head))
        if length != self._length:
            self._packed = b64encode(zlib.compress(trail.head[:length])).decode()
            self._length = length
        return self._packed


def _unpacked(check: str) -> bytes:
    try:
        return zlib.decompress(b64decode(check.split(" ")[2], validate=True))
    except (IndexError, zlib.error) as error:
        raise ValueError(check) from error
