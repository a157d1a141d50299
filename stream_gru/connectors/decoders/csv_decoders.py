"""CSV: lines of separated fields, with a header of names or without one.

Recorded files have the names in their first line.  Without a header (serial ports, MQTT payloads), the names are
``fields`` of the source, else those of the last header line of the same device.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Annotated, Generic, NamedTuple, TypeVar

from msgspec import Meta, Struct

from stream_gru.connectors.decoders.field_map import Column, Fields, build_batch, checked_names
from stream_gru.connectors.decoders.parsing import NUMBER
from stream_gru.connectors.decoders.record_batch import MAX_FIELDS, is_name
from stream_gru.connectors.decoders.rejects import Rejects
from stream_gru.connectors.decoders.text import BYTE_ORDER_MARK, MAX_LINE_BYTES, decoded_lines, is_blank, origin, shown
from stream_gru.core.concatenate import concatenate
from stream_gru.core.errors import DataError
from stream_gru.core.keyed_state import KeyedState, corrupt_state, decode, encode
from stream_gru.core.types import STREAM_ID, DropReason, RawMessage, SampleBatch, empty_batch

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
            rows = _regular(split, len(names), message, rejects)
        columns: dict[str, Column] = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}

        def place_of(row: int) -> int:
            regular = (number for number, cells in enumerate(split, 1) if cells and len(cells) == len(names))
            return next(islice(regular, row, None))

        return build_batch(self._fields, len(rows), columns.get, message, rejects, place_of=place_of)

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


def _regular(split: Sequence[list[str] | None], width: int, message: RawMessage, rejects: Rejects) -> list[list[str]]:
    """The lines of ``width`` cells; all others but blank ones are rejected."""
    broken = [number for number, cells in enumerate(split, 1) if cells is None or len(cells) > width]
    short = [number for number, cells in enumerate(split, 1) if cells and len(cells) < width]
    for reason, bad in ((DropReason.PARSE, broken), (DropReason.MISSING_FIELD, short)):
        if bad:
            rejects.add(reason, message, bad[0], len(bad))
    return [cells for cells in split if cells is not None and len(cells) == width]


_Header = tuple[list[str], list[int]]


class HeaderlessCsvDecoder:
    """Reads messages whose payload is CSV lines without a header.

    A line of the configured names, as a device prints it when it starts, is no record.  Without configured names, a
    line with the names of time, stream and a channel, and without a number, is the header of what follows from the same
    source and key.
    """

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._wanted = list(dict.fromkeys(fields.named))
        names = [name.strip() for name in checked_names(fields, complete=True)] if fields.names else []
        self._configured: _Header | None = self._header(names) if names else None
        self._needed = {name for name in (fields.input.time, fields.input.stream) if name}
        self._columns = frozenset(fields.columns)
        self.state: HeaderCache[_Header] = HeaderCache(self._header)

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        rejects = Rejects()
        return rejects.add_to(self.rows(raw, rejects))

    def rows(self, raw: Sequence[RawMessage], rejects: Rejects) -> SampleBatch:
        """Decode messages in order; what is rejected goes to ``rejects`` alone."""
        lines: list[str] = []
        owners: list[RawMessage] = []
        numbers: list[int] = []
        for message in raw:
            found = decoded_lines(message, rejects)
            if found:
                found[0] = found[0].removeprefix(BYTE_ORDER_MARK)
            lines += found
            owners += [message] * len(found)
            numbers += range(1, len(found) + 1)
        rows: list[list[str | None]] = []
        kept: list[int] = []
        split = split_lines(lines, self._fields.input.delimiter)
        for place, (row, message) in enumerate(zip(split, owners, strict=True)):
            cells = self._cells(row, message)
            if isinstance(cells, DropReason):
                rejects.add(cells, message, numbers[place])
            elif cells:
                rows.append(cells)
                kept.append(place)
        columns: dict[str, Column] = dict(zip(self._wanted, zip(*rows, strict=True), strict=True)) if rows else {}
        origin = [owners[place] for place in kept]
        return build_batch(
            self._fields, len(rows), columns.get, origin, rejects, place_of=lambda row: numbers[kept[row]]
        )

    def _cells(self, row: list[str] | None, message: RawMessage) -> list[str | None] | DropReason:
        """The wanted cells of a line, empty where it is no record; or the reason to reject it."""
        if row is None:
            return DropReason.PARSE
        if not row:
            return []
        names = self._configured
        if names is None:
            if len(row) > MAX_FIELDS:
                return DropReason.TOO_MANY_FIELDS
            if self._is_header(row):
                if not all(map(is_name, row)):
                    return DropReason.TOO_LARGE
                self.state.learn(message, [cell.strip() for cell in row])
                return []
            names = self.state.lookup(message)
            if names is None:
                return DropReason.MISSING_FIELD
        elif row[0].strip() == names[0][0] and [cell.strip() for cell in row] == names[0]:
            return []
        if len(row) != len(names[0]):
            return DropReason.MISSING_FIELD if len(row) < len(names[0]) else DropReason.PARSE
        return [row[place] if place >= 0 else None for place in names[1]]

    def _is_header(self, row: list[str]) -> bool:
        names = {cell.strip() for cell in row}
        if self._columns.isdisjoint(names) or not self._needed <= names:
            return False
        return len(names) == len(row) and not any(NUMBER.fullmatch(name) for name in names)

    def _header(self, names: list[str]) -> _Header:
        """The names, and the index of each wanted one among them; -1 for none."""
        return names, [names.index(name) if name in names else -1 for name in self._wanted]


def split_lines(lines: Sequence[str], delimiter: str) -> list[list[str] | None]:
    """Return the cells of each line: none for a blank line, None for one with broken quotes.

    Decision: a line is a record.  A quoted field may hold the delimiter, but not a line end.
    """
    try:
        rows: list[list[str] | None] = list(csv.reader(lines, delimiter=delimiter, strict=True))
        if len(rows) == len(lines):
            return rows
    except csv.Error:
        pass
    # Some line is broken, or a quote spans several lines.
    rows = []
    for line in lines:
        try:
            rows.append(next(csv.reader([line], delimiter=delimiter, strict=True), []) if line else [])
        except csv.Error:
            rows.append(None)
    return rows


_DEVICES = 4096

T = TypeVar("T")


class _Stored(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The names of a device, and the time of their last use on a clock that counts uses."""

    used: Annotated[int, Meta(ge=0, le=2**62)]
    names: Annotated[list[str], Meta(max_length=MAX_LINE_BYTES + 1)]


class _Entry(NamedTuple, Generic[T]):
    stored: _Stored
    header: T


class HeaderCache(KeyedState[_Entry[T]]):
    """The last names of each device, as ``make`` converts them.

    At most ``devices`` are kept: the least recently used one is dropped.  Names under a key that is no stream id are
    not kept.  The key of a device is ``source TAB key``, which is the name of no stream: to forget a stream drops
    nothing.
    """

    def __init__(self, make: Callable[[list[str]], T], devices: int = _DEVICES) -> None:
        super().__init__(_Stored, "the headers of devices")
        self._make, self._devices = make, devices
        self._uses = 0
        self._in_order = True  # the least recently used device is the first

    def lookup(self, message: RawMessage) -> T | None:
        """Return the header of the device of this message, if any."""
        device = _device(message)
        entry = self.get(device)
        if entry is None:
            return None
        if entry.stored.used != self._uses:
            self._use(device, entry.stored.names, entry.header)
        return entry.header

    def learn(self, message: RawMessage, names: list[str]) -> None:
        """Keep names in place of the earlier ones of the device of this message."""
        if STREAM_ID.fullmatch(message.key):
            self._use(_device(message), names, self._make(names))

    def _use(self, device: str, names: list[str], header: T) -> None:
        """Make a device the most recently used one."""
        if not self._in_order:
            self._records = dict(sorted(self._records.items(), key=lambda item: item[1].stored.used))
            self._in_order = True
        self._uses += 1
        self._records.pop(device, None)
        self.put(device, _Entry(_Stored(self._uses, names), header))
        while len(self) > self._devices:
            self.delete(next(iter(self._records)))

    def _dump(self, record: _Entry[T]) -> bytes:
        return encode(record.stored)

    def _load(self, key: str, data: bytes) -> _Entry[T]:
        _, tab, stream = key.rpartition("\t")
        if not tab or not STREAM_ID.fullmatch(stream):
            raise corrupt_state(f"device {key!r:.80}", "expected the name of a source, a tab and a stream id")
        stored = decode(data, _Stored, f"device {key!r:.80}")
        self._uses = max(self._uses, stored.used)
        self._in_order = False
        return _Entry(stored, self._make(stored.names))


def _device(message: RawMessage) -> str:
    return f"{message.source}\t{message.key}"
