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
