"""What one call of a decoder rejects: one `Rejected` for each message and reason, however many lines are at fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from stream_gru.core.types import I64, DropReason, RawMessage, Rejected, SampleBatch

Line = str | bytes
# The message of all rows, or of each row.
Origin = RawMessage | Sequence[RawMessage]


class Rejects:
    """Counts rejected records, and keeps the first line found at fault of each message and reason."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, DropReason], Rejected] = {}
        self._more: dict[tuple[int, DropReason], int] = {}

    def add(self, reason: DropReason, message: RawMessage, line: Line = b"", records: int = 1) -> None:
        """Reject ``records`` of a message; ``line`` is the line at fault, empty for the message as a whole."""
        key = (id(message), reason)
        if key in self._first:
            self._more[key] = self._more.get(key, 0) + records
        else:
            self._first[key] = Rejected(reason, records, message, line.encode() if isinstance(line, str) else line)

    def add_rows(self, reason: DropReason, rows: I64, origin: Origin, line_of: Callable[[int], Line]) -> None:
        """Reject rows of a table by their indices, of which there is at least one."""
        if isinstance(origin, RawMessage):
            self.add(reason, origin, line_of(int(rows[0])), len(rows))
        else:
            for row in rows.tolist():
                self.add(reason, origin[row], line_of(row))

    def add_to(self, batch: SampleBatch) -> SampleBatch:
        """Return the batch with all that was rejected, in the order in which it was found."""
        if not self._first:
            return batch
        for key, records in self._more.items():
            first = self._first[key]
            self._first[key] = first._replace(records=first.records + records)
        self._more.clear()
        return replace(batch, rejected=tuple(self._first.values()))
