"""The header of a CSV table, as all sources hand it on."""

from __future__ import annotations

import csv
import re

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
    """Takes the first line out of bytes that come in portions; the line after it tells whether it is complete."""

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
