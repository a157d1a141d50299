"""Resuming an input after a restart: how a position recognizes what was read before.

The fingerprint of a position is ``HEAD TAIL``: digests of the first 64 KiB of a text, as far as it was read, and of the
last 512 bytes before the position.  A file that has only grown passes.  Decision: not everything is digested, as that
would take longer than reading; a change in the middle alone is not detected.

A third part holds, for files, six characters for the name of each earlier file of the sequence: a file that appears
among them later is not read, with a warning.  For a pipe it holds the compressed prefix of the input: the first byte
that differs decides, and until then no message is returned.
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

log = logging.getLogger(__name__)

_HEAD_BYTES = 65_536
_TAIL_BYTES = 512
_PREFIX_BYTES = 4096
_NAME_CHARACTERS = 6
_MAX_NAMES = 500  # of more files only those nearest to the current one are known
_PARTS = ("its beginning", "the text before that position")


class Fingerprint:
    """The first and the last bytes, and the length, of the text given to `add`."""

    def __init__(self, head: bytes = b"", tail: bytes = b"", length: int = 0) -> None:
        self.head, self.tail, self.length = head, tail, length
        self._head_digest = digest(head)

    def add(self, data: bytes) -> None:
        """Append what was read next."""
        self.length += len(data)
        if len(self.head) < _HEAD_BYTES:
            self.head += data[: _HEAD_BYTES - len(self.head)]
            self._head_digest = ""
        self.tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self.tail + data)[-_TAIL_BYTES:]

    def text(self) -> str:
        """``HEAD TAIL``, as a position holds it."""
        if not self._head_digest:
            self._head_digest = digest(self.head)
        return f"{self._head_digest} {digest(self.tail)}"

    def difference(self, position: Position) -> str:
        """How the text differs from that of ``position``, up to which it was added; empty when it does not."""
        if self.length < position.offset:
            return f"it ends after {self.length:,} bytes"
        for known, found, part in zip(position.fingerprint.split(" "), self.text().split(" "), _PARTS, strict=False):
            if known and known != found:
                return f"{part} differs"
        return ""


def digest(data: bytes) -> str:
    """Sixteen hexadecimal characters."""
    return blake2b(data, digest_size=8).hexdigest()


def fingerprint_up_to(file: BinaryIO, offset: int, begin: int = 0) -> Fingerprint:
    """The fingerprint of the text from byte ``begin`` of ``file`` up to ``offset``, where the file then stands.

    A file that is too short is fingerprinted to its end.
    """
    file.seek(begin)
    head = file.read(min(_HEAD_BYTES, offset))
    if offset <= len(head):
        return Fingerprint(head, head[-_TAIL_BYTES:], offset)
    place = file.seek(begin + offset - _TAIL_BYTES)
    tail = file.read(_TAIL_BYTES)
    if not tail:  # a plain file can be positioned behind its end
        place = min(place, file.seek(0, 2))
    return Fingerprint(head, tail, max(0, place - begin) + len(tail))


# ---- errors -------------------------------------------------------------------------------------------------------


def changed_input(where: str, position: Position, why: str, name: str, unit: str = "byte") -> DataError:
    """The error for an input that is not the one of ``position``; ``name`` is that of the source."""
    return DataError(
        f"{where}: was read up to {unit} {position.offset:,} and has changed since: {why}; restore it, or "
        f"{reset_hint(name)}"
    )


def missing_file(position: Position, name: str, unit: str = "byte") -> DataError:
    """The error for a file that was being read and is not found."""
    return DataError(
        f"{position.name}: was read up to {unit} {position.offset:,} and is missing; restore it, or {reset_hint(name)}"
    )


def reset_hint(name: str) -> str:
    """The command that makes a source read its input from the beginning."""
    return f"read from the beginning with `stream-gru state reset CONFIG --source {name}`"


# ---- a sequence of files --------------------------------------------------------------------------------------------


def stored_name(path: Path) -> str:
    """The name of a file in positions: the same from every working directory, and through every link to its folder.

    A link that is the file itself is not followed: it may lead to another file tomorrow.
    """
    return str(path.parent.resolve() / path.name)


def with_earlier_names(paths: Sequence[Path], begin: int) -> Iterator[tuple[Path, str]]:
    """Yield each file from ``begin`` on, and the part of its fingerprints for the files before it, after a space."""
    names = [_name_digest(path) for path in paths]
    for index, path in enumerate(paths[begin:], begin):
        earlier = "".join(names[max(0, index - _MAX_NAMES) : index])
        yield path, f" {earlier}" if earlier else ""


def index_of(paths: Sequence[Path], position: Position, name: str) -> int:
    """The index of the file of ``position``.  Raises DataError; warns of new files before it, which are not read."""
    names = [stored_name(path) for path in paths]
    if position.name not in names:
        raise missing_file(position, name)
    index = names.index(position.name)
    new = _new_files(paths[:index], position)
    if new:
        more = f" and {len(new) - 1:,} more" if len(new) > 1 else ""
        log.warning(
            "%s: %s%s: new and sorting before %s, which was being read; skipped",
            name,
            new[0],
            more,
            position.name,
        )
    return index


def _new_files(paths: Sequence[Path], position: Position) -> list[Path]:
    """Those of the earlier files that ``position`` does not know."""
    _, _, kept = position.fingerprint.partition(" ")[2].partition(" ")
    if not position.fingerprint:
        return []
    known = {kept[i : i + _NAME_CHARACTERS] for i in range(0, len(kept), _NAME_CHARACTERS)}
    new = [path for path in paths if _name_digest(path) not in known]
    if len(known) < _MAX_NAMES:
        return new
    first = next((index for index, path in enumerate(paths) if _name_digest(path) in known), len(paths))
    return [path for path in paths[first:] if _name_digest(path) not in known]


def _name_digest(path: Path) -> str:
    return digest(stored_name(path).encode(errors="surrogateescape"))[:_NAME_CHARACTERS]


# ---- a pipe -------------------------------------------------------------------------------------------------------


class Match(Enum):
    """Whether an input begins like the one before the restart."""

    UNDECIDED = auto()
    SAME = auto()
    NEW = auto()


class PrefixMatcher:
    """Compares bytes that come in portions with the prefix in ``position``, and holds them until it is decided.

    Raises ValueError when ``position`` has no valid prefix.
    """

    def __init__(self, position: Position) -> None:
        try:
            self._prefix = zlib.decompress(b64decode(position.fingerprint.split(" ")[2], validate=True))
        except (IndexError, zlib.error) as error:
            raise ValueError(position.fingerprint) from error
        self.held = b""

    def feed(self, data: bytes) -> Match:
        """Take the next portion; everything so far is in ``held``."""
        self.held += data
        length = min(len(self._prefix), len(self.held))
        if self.held[:length] != self._prefix[:length]:
            return Match.NEW
        return Match.SAME if length == len(self._prefix) else Match.UNDECIDED


class PackedPrefix:
    """The prefix of an input as a position holds it, compressed again only while it grows."""

    def __init__(self) -> None:
        self._packed, self._length = "", -1

    def text(self, fingerprint: Fingerprint) -> str:
        """Text of at most 4 KiB before compression."""
        length = min(_PREFIX_BYTES, len(fingerprint.head))
        if length != self._length:
            self._packed = b64encode(zlib.compress(fingerprint.head[:length])).decode()
            self._length = length
        return self._packed
