"""CSV: lines of separated fields, the first line of a file names them."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from stream_gru.decoders.fields import Column, Fields, assemble
from stream_gru.decoders.lines import decoded_lines
from stream_gru.errors import DataError
from stream_gru.types import DropReason, RawMessage, SampleBatch, concatenate, empty_batch


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
        header = message.header.decode("utf-8-sig", errors="replace")
        delimiter = self._fields.input.delimiter
        try:
            names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter), [])]
        except csv.Error as error:
            raise DataError(f"{message.key}: expected a header of CSV names, got {header[:80]!r}: {error}") from error
        twice = [name for name in self._fields.named if names.count(name) > 1]
        if twice:
            raise DataError(f"{message.key}: expected one column {twice[0]!r} in the header, got several")
        missing = [name for name in self._fields.required if name not in names]
        if missing:
            raise DataError(
                f"{message.key}: expected a column {missing[0]!r} in the header, got {', '.join(names) or 'nothing'};"
                " see [input] and [[channel]] column"
            )
        return names
