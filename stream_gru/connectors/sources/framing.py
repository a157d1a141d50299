"""Framing: cuts a stream of bytes, which may start and end anywhere, into records; finds a CSV header line.

The frames do not depend on how the bytes are cut into portions.  A framer holds at most one frame.
"""

from __future__ import annotations

import csv
import logging
import re
from typing import Protocol

from stream_gru.core.types import DropReason

log = logging.getLogger(__name__)


class Framer(Protocol):
    """Cuts bytes into frames."""

    def feed(self, data: bytes) -> list[bytes | DropReason]:
        """Return the frames that ``data`` completes, in order; a reason stands for an unusable frame."""
        ...


class LineFramer:
    r"""Lines that end with LF or CR LF, without their ends; blank lines are skipped.

    ``max_bytes`` bounds a line without its end: a longer one is OVERLONG_LINE once, and skipped.  ``discard_first``:
    skip what comes before the first line end, the rest of a line that began earlier.
    """

    def __init__(self, max_bytes: int, discard_first: bool = True) -> None:
        self._cutter = _Cutter(b"\n", max_bytes + 1, discard_first)  # one more: the CR of a line end
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[bytes | DropReason]:
        """Return the lines that ``data`` completes."""
        return [line for piece in self._cutter.feed(data) if (line := self._line(piece))]

    def _line(self, piece: bytes | None) -> bytes | DropReason:
        if piece is None:
            return DropReason.OVERLONG_LINE
        line = piece.removesuffix(b"\r")
        if len(line) > self._max_bytes:
            return DropReason.OVERLONG_LINE
        return line if line.strip() else b""


class CobsFramer:
    """Frames that end with a zero byte and hold none, as COBS makes them; they are returned encoded.

    Empty frames are skipped.  ``max_bytes`` bounds a frame as it is sent, without its zero: a longer one
    is OVERLONG_LINE once, and skipped.  ``discard_first``: see `LineFramer`.
    """

    def __init__(self, max_bytes: int, discard_first: bool = True) -> None:
        self._cutter = _Cutter(b"\0", max_bytes, discard_first)

    def feed(self, data: bytes) -> list[bytes | DropReason]:
        """Return the frames that ``data`` completes, still encoded."""
        pieces = self._cutter.feed(data)
        return [DropReason.OVERLONG_LINE if piece is None else piece for piece in pieces if piece != b""]


class _Cutter:
    """Cuts at ``end``; a piece longer than ``max_bytes`` is None, as soon as that is known."""

    def __init__(self, end: bytes, max_bytes: int, discard_first: bool) -> None:
        self._end, self._max_bytes = end, max_bytes
        self._rest = b""
        self._discarding = discard_first  # the current piece began earlier
        self._skipping = False  # the current piece was reported as too long

    def feed(self, data: bytes) -> list[bytes | None]:
        *pieces, rest = (self._rest + data).split(self._end)
        found: list[bytes | None] = []
        for piece in pieces:
            if self._skipping:
                pass
            elif len(piece) > self._max_bytes:
                found.append(None)
            elif self._discarding:
                log.debug("%d bytes before the first line end are skipped", len(piece))
            else:
                found.append(piece)
            self._discarding = self._skipping = False
        if self._skipping:
            rest = b""
        elif len(rest) > self._max_bytes:
            found.append(None)
            self._skipping, rest = True, b""
        self._rest = rest
        return found


_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# A row's number.  Ten digits and more are a time since 1970, not a number of a row.
_ROW_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


def completed_header(header: bytes, first: bytes) -> bytes:
    """Name the nameless column of a table whose rows begin with a number of their own, as some tools write it.

    ``first`` is the line after the header, whole.  Decision: no further line is looked at, so that a live source waits
    for one line only, and says the same as a file.  An extra cell anywhere else is that row's own mistake.
    """
    delimiter = max((b",", b";", b"\t"), key=header.count)
    try:
        names, cells = (
            next(csv.reader([line.decode("utf-8", "replace").rstrip("\r\n")], delimiter=delimiter.decode()), [])
            for line in (header, first)
        )
    except csv.Error:
        return header
    nameless = names and len(cells) == len(names) + 1 and cells[-1] and _ROW_NUMBER.fullmatch(cells[0])
    return b'""' + delimiter + header.removeprefix(_BYTE_ORDER_MARK) if nameless else header


class HeaderLine:
    """Takes the first line out of bytes that come in portions; the line after it shows whether it is complete."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lines: list[bytes] = [b"", b""]
        self._place = 0

    def take(self, data: bytes) -> bytes:
        """Return what of ``data`` comes after the first line."""
        after = data if self._place else b""
        while data and self._place < len(self._lines):
            cut = data.find(b"\n") + 1
            piece = data[:cut] if cut else data
            self._lines[self._place] = (self._lines[self._place] + piece)[: self._max_bytes]
            data = data[len(piece) :]
            if cut and not self._place:
                after = data
            self._place += bool(cut)
        return after

    @property
    def found(self) -> bool:
        """Whether the first line has come whole."""
        return self._place > 0

    @property
    def header(self) -> bytes:
        """The first line without its end; not complete before the line after it is."""
        return completed_header(self._lines[0].removesuffix(b"\n"), self._lines[1])
