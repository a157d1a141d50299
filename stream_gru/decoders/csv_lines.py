"""CSV: lines of separated fields, the first line of a file names them."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from stream_gru.decoders.fields import Column, Fields, assemble
from stream_gru.decoders.lines import decoded_lines, origin, shown
from stream_gru.errors import DataError
from stream_gru.types import DropReason, RawMessage, SampleBatch, concatenate, empty_batch

# What an unread header may be separated by.
_DELIMITERS = ",;\t|"


class CsvDecoder:
    """Reads messages whose payload is whole CSV lines and whose header is the line with the names.

    A line is a record: a quoted field may hold the delimiter, not a line end.
    """

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order.  Raises DataError when the header lacks a column."""
        return concatenate(
            [self._decode_one(message) for message in raw] or [empty_batch(len(self._fields.columns))],
            len(self._fields.columns),
        )

    def _decode_one(self, message: RawMessage) -> SampleBatch:
        names = self._names(message)
        lines, rejected = decoded_lines(message.payload)
        rows, broken = self._split(lines)
        lengths = list(map(len, rows))
        regular = lengths.count(len(names)) == len(rows)
        good = rows if regular else [row for row in rows if len(row) == len(names)]
        short = 0 if regular else sum(length < len(names) for length in lengths)
        for reason, n in (
            (DropReason.PARSE, broken + len(rows) - len(good) - short),
            (DropReason.MISSING_FIELD, short),
        ):
            if n:
                rejected[reason] = rejected.get(reason, 0) + n
        columns: dict[str, Column] = dict(zip(names, zip(*good, strict=True), strict=True)) if good else {}
        batch = assemble(self._fields, len(good), columns.get, message.key)
        counted = empty_batch(len(self._fields.columns), rejected)
        return concatenate([batch, counted], len(self._fields.columns)) if rejected else batch

    def _split(self, lines: list[str]) -> tuple[list[list[str]], int]:
        """Split lines into fields; return rows and how many lines are broken.  Blank lines are nothing."""
        delimiter = self._fields.input.delimiter
        try:
            rows = list(csv.reader(lines, delimiter=delimiter, strict=True))
            if len(rows) == len(lines):
                return [row for row in rows if row], 0
        except csv.Error:
            pass
        # Some line is broken, or a quote swallowed the end of one.
        rows, broken = [], 0
        for line in lines:
            try:
                rows.extend(row for row in csv.reader([line], delimiter=delimiter, strict=True) if row)
            except csv.Error:
                broken += 1
        return rows, broken

    def _names(self, message: RawMessage) -> list[str]:
        place = origin(message)
        header = message.header.decode("utf-8-sig", errors="replace").rstrip("\r\n")
        if "\r" in header:
            raise DataError(
                f"{place}: expected lines that end with LF or CR LF, got a header with CR alone: {shown(header)}"
            )
        try:
            names = [name.strip() for name in next(csv.reader([header], delimiter=self._fields.input.delimiter), [])]
        except csv.Error as error:
            raise DataError(f"{place}: expected a header of CSV names, got {shown(header)}: {error}") from error
        twice = [name for name in self._fields.named if names.count(name) > 1]
        if twice:
            raise DataError(f"{place}: expected one column {twice[0]!r} in the header, got several")
        missing = [name for name in self._fields.required if name not in names]
        if missing:
            one = len(names) == 1 and any(mark in names[0] for mark in _DELIMITERS)
            raise DataError(
                f"{place}: expected a column {missing[0]!r} in the header, got {shown(', '.join(names)) or 'nothing'};"
                + (" is input.delimiter right?" if one else " see [input] and [[channel]] column")
            )
        return names
