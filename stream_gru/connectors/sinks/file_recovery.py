"""A file as a sink finds it: cut back to what was committed, its end completed, its rotation finished.

    mark            the file                              what is done
    none            whatever                              `repair`: a half written row or member is the end of a kill
    offset          at least as long                      cut there; an open gzip member gets its end
    offset          shorter                               StateError: it is damaged
    offset          gone or empty                         a warning, begun anew
    offset, aside   the one that was to be put aside      cut there, put aside, begun anew
    offset, aside   another one, or none                  the rename was done: begun anew

What lies behind an offset is no loss: its inputs were not acknowledged, so they come and are written again.

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


class Detail(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a mark says of a file besides its length.

    ``aside``  the name under which it is put aside as soon as the mark is committed
    ``tail``   CRC-32 of what lies before the offset, by which a file to be put aside is known from the next one
    ``crc32``, ``size``  of the gzip member that has no end yet: of its uncompressed bytes
    """

    aside: str = ""
    tail: int = 0
    crc32: int = 0
    size: int = 0

    def text(self) -> str:
        """As it stands in a mark."""
        return "" if self == Detail() else msgspec.json.encode(self).decode()


def tail_of(path: Path, offset: int) -> int:
    """CRC-32 of the last bytes before ``offset``.  Raises OSError."""
    with path.open("rb") as file:
        file.seek(max(0, offset - _TAIL))
        return zlib.crc32(file.read(min(offset, _TAIL)))


def recover(path: Path, mark: FileOffset, keep: int) -> int:
    """Make the file ready for more behind ``mark``; return the mark's offset, or 0 for a file to be begun anew.

    What lies at ``path`` then has as many bytes, and the end of an open gzip member.  Raises OSError, StateError.
    """
    detail = _read(mark)
    if detail.aside:
        _finish_rotation(path, mark, detail, keep)
        return 0
    size = _size(path)
    if size == 0:
        if mark.offset:
            log.warning("%s: is gone or empty, with %d bytes that were committed; begun anew", path, mark.offset)
        return 0
    if size < mark.offset:
        raise StateError(
            f"{path}: has {size} bytes, expected at least the {mark.offset} that were committed: it is damaged or "
            "another file; put the right one there, or move this one away to begin anew"
        )
    os.truncate(path, mark.offset)
    if detail.size:
        with path.open("ab") as file:
            file.write(ending(detail.crc32, detail.size))
    return mark.offset


def repair(path: Path, wall_s: float) -> int:
    """Make a file of which nothing is known ready for more; return its length.  Raises OSError.

    A half written last row is cut off; a compressed file without its end is put aside.
    """
    if not path.is_file():
        return 0
    if not path.name.endswith(".gz"):
        return _cut_half_row(path)
    rows = _uncompressed_size(path)
    if rows is None:
        put_aside(path, aside_name(path, wall_s))
    elif rows == 0:
        os.truncate(path, 0)
    return _size(path)


def _read(mark: FileOffset) -> Detail:
    try:
        return msgspec.json.decode(mark.detail, type=Detail) if mark.detail else Detail()
    except msgspec.DecodeError as error:
        raise StateError(f"{mark.path}: what is kept of it cannot be read ({error}): {mark.detail!r}") from error


def _finish_rotation(path: Path, mark: FileOffset, detail: Detail, keep: int) -> None:
    """Put the file aside, unless that was done before the kill; then nothing of what lies there is committed."""
    size = _size(path)
    # Not by the name it would have now: a file that was put aside may have been taken away since.
    if size >= mark.offset and tail_of(path, mark.offset) == detail.tail:
        os.truncate(path, mark.offset)
        put_aside(path, path.with_name(detail.aside))
    elif size:
        os.truncate(path, 0)
    keep_newest(path, keep)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _cut_half_row(path: Path) -> int:
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
    """How much is in a compressed file; None when it does not end as it should.  Raises OSError."""
    size = 0
    try:
        with gzip.open(path, "rb") as file:
            while part := file.read(_CHUNK):
                size += len(part)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return None
    return size


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


# No name and no time are inside, so that outputs can be compared by their hash.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x03\x00"
_LEVEL = 6


class GzipMember:
    """One member under way; ``crc32`` and ``size`` are of the uncompressed bytes so far."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._begun = False
        self.crc32 = self.size = 0

    def write(self, data: bytes) -> bytes:
        """Compress; return what came out, perhaps nothing."""
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
    """What makes a member whole behind a `GzipMember.sync` at which it had this checksum and size."""
    return _LAST_BLOCK + _trailer(crc32, size)


def _trailer(crc32: int, size: int) -> bytes:
    return struct.pack("<II", crc32, size & 0xFFFFFFFF)
