"""CSV: lines of separated fields, the first line of a file names them."""

from __future__ import annotations

import csv
from collections.abc import Sequence

from stream_gru.connectors.decoders.csv_cells import split_lines
from stream_gru.connectors.decoders.csv_headerless import BareCsvDecoder
from stream_gru.connectors.decoders.field_map import Column, Fields, assemble
from stream_gru.connectors.decoders.record_batch import counted
from stream_gru.connectors.decoders.text import decoded_lines, is_blank, origin, shown
from stream_gru.core.errors import DataError
from stream_gru.core.types import DropReason, RawMessage, SampleBatch, concatenate, empty_batch

# What an unread header may be separated by.
_DELIMITERS = ",;\t|"


class CsvDecoder:
    """Reads messages whose payload is whole CSV lines and whose header is the line with the names.

    A recording must have one; live messages without are read by `BareCsvDecoder`, as are lines whose names the source
    gives.  Raises ConfigError when those are no use.
    """

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._bare = BareCsvDecoder(fields)
        self.memory = self._bare.memory

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order.  Raises DataError when the header lacks a column."""
        batches: list[SampleBatch] = []
        bare: list[RawMessage] = []
        faults: dict[DropReason, int] = {}
        for message in raw:
            if message.fault is not None:
                faults[message.fault] = faults.get(message.fault, 0) + 1
            elif not message.header and is_blank(message):
                faults[DropReason.PARSE] = faults.get(DropReason.PARSE, 0) + 1
            elif message.header or not (message.arrival_ns or self._fields.names):
                if bare:
                    batches.append(self._bare.decode(bare))
                    bare = []
                batches.append(self._decode_one(message))
            else:
                bare.append(message)
        if bare:
            batches.append(self._bare.decode(bare))
        channels = len(self._fields.columns)
        return counted(concatenate(batches or [empty_batch(channels)], channels), faults)

    def _decode_one(self, message: RawMessage) -> SampleBatch:
        names = self._names(message)
        lines, rejected = decoded_lines(message)
        split = split_lines(lines, self._fields.input.delimiter)
        rows = [row for row in split if row]
        lengths = list(map(len, rows))
        regular = lengths.count(len(names)) == len(rows)
        good = rows if regular else [row for row in rows if len(row) == len(names)]
        short = 0 if regular else sum(length < len(names) for length in lengths)
        for reason, n in (
            (DropReason.PARSE, split.count(None) + len(rows) - len(good) - short),
            (DropReason.MISSING_FIELD, short),
        ):
            if n:
                rejected[reason] = rejected.get(reason, 0) + n
        columns: dict[str, Column] = dict(zip(names, zip(*good, strict=True), strict=True)) if good else {}
        return counted(assemble(self._fields, len(good), columns.get, message.key, message.arrival_ns), rejected)

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
