"""A file as a sink finds it after a kill: cut back to the last commit, completed, or its rotation finished.

    commit              the file                    what is done
    none                any                         `repair`: cut behind the last row; a broken gzip file is rotated
    offset              at least as long            cut there; an open gzip member gets its end
    offset              shorter                     StateError: it is damaged
    offset              missing or empty            a warning, and a new file
    offset, rotation    the one to be rotated       cut there, renamed, and a new file
    offset, rotation    another one, or none        the rename was done: a new file

Nothing behind an offset is lost: its inputs were not acknowledged, so they are read and written again.

A gzip file is a sequence of members, written piece by piece, which another process can end after a kill.
Source: RFC 1951 (an empty last block), RFC 1952 (header and trailer of a member).

A rotated file is renamed: ``out.jsonl`` becomes ``out.20261121T101500Z.jsonl``, the next ``….1.jsonl``.
"""

from __future__ import annotations

import gzip
import logging
import os
import re
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from stream_gru.connectors.folders import sync_folder
from stream_gru.core.commit_records import FileOffset
from stream_gru.core.errors import StateError

log = logging.getLogger(__name__)

_CHUNK = 65_536
_TAIL = 4096
# A gzip header without name and time, so that outputs can be compared by their hash.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x03\x00"
_LEVEL = 6


class Detail(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a commit stores of a file besides its length.

    ``rotated``  the name that the file gets as soon as the commit is done
    ``tail``     CRC-32 of the bytes before the offset, which distinguishes a file to be rotated from the next one
    ``crc32``, ``size``  of the uncompressed bytes of the gzip member that has no end yet
    """

    rotated: str = ""
    tail: int = 0
    crc32: int = 0
    size: int = 0

    def text(self) -> str:
        """The stored form."""
        return "" if self == Detail() else msgspec.json.encode(self).decode()


def tail_of(path: Path, offset: int) -> int:
    """CRC-32 of the last bytes before ``offset``.  Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, offset - _TAIL))
        return zlib.crc32(file.read(min(offset, _TAIL)))


def recover(path: Path, committed: FileOffset, max_files: int) -> int:
    """Cut the file back to what was committed; return that offset, or 0 for a new file.

    The file then has as many bytes, and the end of an open gzip member.  Raises OSError, StateError.
    """
    detail = _read(committed)
    if detail.rotated:
        _finish_rotation(path, committed, detail, max_files)
        return 0
    size = _size(path)
    if size == 0:
        if committed.offset:
            log.warning("%s: is missing or empty, %d bytes were committed; starting a new file", path, committed.offset)
        return 0
    if size < committed.offset:
        raise StateError(
            f"{path}: has {size} bytes, expected at least the {committed.offset} that were committed: it is damaged or "
            "another file; restore it, or move it away to start a new one"
        )
    os.truncate(path, committed.offset)
    if detail.size:
        with path.open("ab") as file:
            file.write(ending(detail.crc32, detail.size))
    return committed.offset


def repair(path: Path, wall_s: float) -> int:
    """Make a file without a commit ready for more rows; return its length.  Raises OSError.

    An incomplete last row is cut off; a compressed file without its end is rotated.
    """
    if not path.is_file():
        return 0
    if not path.name.endswith(".gz"):
        return _cut_incomplete_row(path)
    rows = _uncompressed_size(path)
    if rows is None:
        rotate(path, rotated_name(path, wall_s))
    elif rows == 0:
        os.truncate(path, 0)
    return _size(path)


def _read(committed: FileOffset) -> Detail:
    try:
        return msgspec.json.decode(committed.detail, type=Detail) if committed.detail else Detail()
    except msgspec.DecodeError as error:
        raise StateError(f"{committed.path}: its stored offset is not valid ({error}): {committed.detail!r}") from error


def _finish_rotation(path: Path, committed: FileOffset, detail: Detail, max_files: int) -> None:
    """Rename the file, unless that was done before the kill: then nothing of the file there is committed."""
    size = _size(path)
    # Not known by its new name: a rotated file may have been moved away since.
    if size >= committed.offset and tail_of(path, committed.offset) == detail.tail:
        os.truncate(path, committed.offset)
        rotate(path, path.with_name(detail.rotated))
    elif size:
        os.truncate(path, 0)
    delete_oldest(path, max_files)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _cut_incomplete_row(path: Path) -> int:
    """Truncate a file behind its last line end; return its length.  Raises OSError."""
    with path.open("rb+") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _CHUNK)
            file.seek(start)
            cut = file.read(end - start).rfind(b"\n")
            if cut >= 0:
                end = start + cut + 1
                break
            end = start
        if end < size:
            file.truncate(end)
        return end


def _uncompressed_size(path: Path) -> int | None:
    """Bytes of the content of a gzip file; None when it has no proper end.  Raises OSError."""
    size = 0
    try:
        with gzip.open(path, "rb") as file:
            while part := file.read(_CHUNK):
                size += len(part)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return None
    return size


def rotated_name(path: Path, wall_s: float) -> Path:
    """A new name for a file that is rotated at the UTC time ``wall_s``.  Raises OSError.

    It sorts after all existing ones, also where the clock was set back: the newest file has the last name.
    """
    stem, suffix = _parts(path)
    now = datetime.fromtimestamp(wall_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    # After all others of this second, also where earlier ones have been deleted.
    time, n = max([(now, 0), *((time, n + 1) for time, n, _ in _numbered(path))])
    return path.with_name(f"{stem}.{time}.{n}.{suffix}" if n else f"{stem}.{time}.{suffix}")


def rotate(path: Path, target: Path) -> None:
    """Rename a file, durably.  Raises OSError."""
    path.rename(target)
    sync_folder(path.parent)


def rotated_files(path: Path) -> list[Path]:
    """The rotated files of ``path``, oldest first.  Raises OSError."""
    return [other for _, _, other in sorted(_numbered(path))]


def _numbered(path: Path) -> list[tuple[str, int, Path]]:
    """Time, number and name of each rotated file."""
    stem, suffix = _parts(path)
    form = re.compile(rf"{re.escape(stem)}\.(\d{{8}}T\d{{6}}Z)(?:\.(\d+))?\.{re.escape(suffix)}")
    named = [(form.fullmatch(other.name), other) for other in path.parent.iterdir()]
    return [(found[1], int(found[2] or 0), other) for found, other in named if found]


def delete_oldest(path: Path, max_files: int) -> None:
    """Delete all but the newest ``max_files`` rotated files; log what cannot be deleted."""
    for old in rotated_files(path)[:-max_files]:
        try:
            old.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s: cannot be deleted: %s", old, error.strerror)


def _parts(path: Path) -> tuple[str, str]:
    """``out.jsonl.gz`` -> ``out`` and ``jsonl.gz``."""
    compressed = ".gz" if path.name.endswith(".gz") else ""
    stem, _, form = path.name.removesuffix(".gz").rpartition(".")
    return stem, form + compressed


class GzipMember:
    """An open member; ``crc32`` and ``size`` are of its uncompressed bytes so far."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._begun = False
        self.crc32 = self.size = 0

    def write(self, data: bytes) -> bytes:
        """Compress; return the output so far, perhaps nothing."""
        self.crc32 = zlib.crc32(data, self.crc32)
        self.size += len(data)
        return self._head() + self._deflate.compress(data)

    def sync(self) -> bytes:
        """End on a whole byte: a reader can read everything up to here, and `ending` may follow."""
        return self._head() + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        """End the member; nothing can be written after it."""
        return self._head() + self._deflate.flush(zlib.Z_FINISH) + _trailer(self.crc32, self.size)

    def _head(self) -> bytes:
        begun, self._begun = self._begun, True
        return b"" if begun else _HEADER


def ending(crc32: int, size: int) -> bytes:
    """The end of a member after a `GzipMember.sync`, at which it had this checksum and size."""
    return _LAST_BLOCK + _trailer(crc32, size)


def _trailer(crc32: int, size: int) -> bytes:
    return struct.pack("<II", crc32, size & 0xFFFFFFFF)
