"""Cells of CSV lines.  A line is a record: a quoted field may hold the delimiter, not a line end."""

from __future__ import annotations

import csv
from collections.abc import Sequence


def split_lines(lines: Sequence[str], delimiter: str) -> list[list[str] | None]:
    """The cells of each line: none of a blank line, None of one whose quotes are broken."""
    try:
        rows: list[list[str] | None] = list(csv.reader(lines, delimiter=delimiter, strict=True))
        if len(rows) == len(lines):
            return rows
    except csv.Error:
        pass
    # Some line is broken, or a quote swallowed the end of one.
    rows = []
    for line in lines:
        try:
            rows.append(next(csv.reader([line], delimiter=delimiter, strict=True), []) if line else [])
        except csv.Error:
            rows.append(None)
    return rows
