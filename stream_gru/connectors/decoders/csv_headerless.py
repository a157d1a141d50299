"""CSV without a header of its own: lines of a serial port, payloads of MQTT, tables whose names a configuration gives.

The names are ``fields`` of the source; without, the last line of the same device that named them.
"""

from __future__ import annotations

from collections.abc import Sequence

from stream_gru.connectors.decoders.csv_cells import split_lines
from stream_gru.connectors.decoders.field_map import Fields, assemble
from stream_gru.connectors.decoders.header_cache import Memory
from stream_gru.connectors.decoders.names import checked_names
from stream_gru.connectors.decoders.parsing import NUMBER, Column
from stream_gru.connectors.decoders.record_batch import MAX_FIELDS, counted, is_name
from stream_gru.connectors.decoders.text import decoded_lines
from stream_gru.core.types import DropReason, RawMessage, SampleBatch

_Names = tuple[list[str], list[int]]


class BareCsvDecoder:
    """Reads messages whose payload is CSV lines under no header.

    A line of the names themselves, as a device prints it when it starts, is no record.  Without configured names a line
    with time, stream and a channel's name, and no number, names what follows from the same source and key.
    """

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._wanted = list(dict.fromkeys(fields.named))
        names = [name.strip() for name in checked_names(fields, fields.names, beside=False)] if fields.names else []
        self._configured: _Names | None = self._placed(names) if names else None
        self._needed = {name for name in (fields.input.time, fields.input.stream) if name}
        self._columns = frozenset(fields.columns)
        self.memory: Memory[_Names] = Memory(self._placed)

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        rejected: dict[DropReason, int] = {}
        lines: list[str] = []
        owners: list[RawMessage] = []
        for message in raw:
            found, bad = decoded_lines(message)
            for reason, n in bad.items():
                rejected[reason] = rejected.get(reason, 0) + n
            if found and found[0][:1] == "\ufeff":
                found[0] = found[0][1:]
            lines += found
            owners += [message] * len(found)
        rows: list[list[str | None]] = []
        kept: list[RawMessage] = []
        for row, message in zip(split_lines(lines, self._fields.input.delimiter), owners, strict=True):
            cells = self._cells(row, message)
            if isinstance(cells, DropReason):
                rejected[cells] = rejected.get(cells, 0) + 1
            elif cells:
                rows.append(cells)
                kept.append(message)
        columns: dict[str, Column] = dict(zip(self._wanted, zip(*rows, strict=True), strict=True)) if rows else {}
        batch = assemble(
            self._fields,
            len(rows),
            columns.get,
            kept[0].key if len(kept) == 1 else [message.key for message in kept],
            [message.arrival_ns for message in kept],
        )
        return counted(batch, rejected)

    def _cells(self, row: list[str] | None, message: RawMessage) -> list[str | None] | DropReason:
        """The wanted cells of a line; none where it is no record."""
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
                self.memory.put(message, [cell.strip() for cell in row])
                return []
            names = self.memory.get(message)
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

    def _placed(self, names: list[str]) -> _Names:
        """The names, and where the wanted ones stand; -1 for nowhere."""
        return names, [names.index(name) if name in names else -1 for name in self._wanted]
