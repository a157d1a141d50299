"""CSV: lines of separated fields whose names are in the first line of a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice

from stream_gru.connectors.decoders.csv_headerless import HeaderlessCsvDecoder, split_lines
from stream_gru.connectors.decoders.field_map import Column, Fields, build_batch
from stream_gru.connectors.decoders.rejects import Rejects
from stream_gru.connectors.decoders.text import decoded_lines, is_blank, origin, shown
from stream_gru.core.concatenate import concatenate
from stream_gru.core.errors import DataError
from stream_gru.core.types import DropReason, RawMessage, SampleBatch, empty_batch

# Delimiters that a header of a single name may really have.
_DELIMITERS = ",;\t|"


class CsvDecoder:
    """Reads messages whose payload is whole CSV lines and whose header is the line with the names.

    Live messages without a header, and all without one where ``fields`` of the source has the names, are read by
    `HeaderlessCsvDecoder`.  Raises ConfigError when these names cannot be used.
    """

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._headerless = HeaderlessCsvDecoder(fields)
        self.state = self._headerless.state

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order.  Raises DataError when the header lacks a column."""
        batches: list[SampleBatch] = []
        headerless: list[RawMessage] = []
        rejects = Rejects()
        for message in raw:
            if message.fault is not None:
                rejects.add(message.fault, message)
            elif not message.header and is_blank(message):
                rejects.add(DropReason.PARSE, message)
            elif message.header or not (message.arrival_ns or self._fields.names):
                if headerless:
                    batches.append(self._headerless.rows(headerless, rejects))
                    headerless = []
                batches.append(self._rows(message, rejects))
            else:
                headerless.append(message)
        if headerless:
            batches.append(self._headerless.rows(headerless, rejects))
        channels = len(self._fields.columns)
        return rejects.add_to(concatenate(batches or [empty_batch(channels)], channels))

    def _rows(self, message: RawMessage, rejects: Rejects) -> SampleBatch:
        names = self._names(message)
        lines = decoded_lines(message, rejects)
        split = split_lines(lines, self._fields.input.delimiter)
        rows = [row for row in split if row]
        if list(map(len, rows)).count(len(names)) != len(rows) or None in split:
            rows = _regular(split, len(names), lines, message, rejects)
        columns: dict[str, Column] = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}

        def line_of(row: int) -> str:
            regular = (line for line, cells in zip(lines, split, strict=True) if cells and len(cells) == len(names))
            return next(islice(regular, row, None))

        return build_batch(self._fields, len(rows), columns.get, message, rejects, line_of=line_of)

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
                + (" check input.delimiter" if one else " see [input] and [[channel]] column")
            )
        return names


def _regular(
    split: Sequence[list[str] | None], width: int, lines: Sequence[str], message: RawMessage, rejects: Rejects
) -> list[list[str]]:
    """The lines of ``width`` cells; all others but blank ones are rejected."""
    each = list(zip(split, lines, strict=True))
    broken = [line for cells, line in each if cells is None or len(cells) > width]
    short = [line for cells, line in each if cells and len(cells) < width]
    for reason, bad in ((DropReason.PARSE, broken), (DropReason.MISSING_FIELD, short)):
        if bad:
            rejects.add(reason, message, bad[0], len(bad))
    return [cells for cells in split if cells is not None and len(cells) == width]
