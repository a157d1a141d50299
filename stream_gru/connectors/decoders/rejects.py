"""What one call of a decoder rejects: one `Rejected` for each message and reason, however many lines are at fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from stream_gru.core.types import I64, DropReason, RawMessage, Rejected, SampleBatch

Line = str | bytes
# The message of all rows, or of each row.
Origin = RawMessage | Sequence[RawMessage]


class Rejects:
    """Counts rejected records, and keeps the first line at fault of each message and reason."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, DropReason], int] = {}
        self._first: dict[tuple[int, DropReason], tuple[RawMessage, Line]] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, reason: DropReason, message: RawMessage, line: Line = b"", records: int = 1) -> None:
        """Reject ``records`` of a message; ``line`` is the line at fault, empty for the message as a whole."""
        key = (id(message), reason)
        count = self._counts.get(key)
        if count is None:
            self._first[key] = (message, line)
            count = 0
        self._counts[key] = count + records

    def add_rows(self, reason: DropReason, rows: I64, origin: Origin, line_of: Callable[[int], Line]) -> None:
        """Reject rows of a table by their indices, of which there is at least one."""
        if isinstance(origin, RawMessage):
            self.add(reason, origin, line_of(int(rows[0])), len(rows))
        else:
            for row in rows.tolist():
                self.add(reason, origin[row], line_of(row))

    def entries(self) -> tuple[Rejected, ...]:
        """All that was rejected, in the order in which it was found."""
        return tuple(
            Rejected(key[1], self._counts[key], message, line.encode() if isinstance(line, str) else line)
            for key, (message, line) in self._first.items()
        )

    def add_to(self, batch: SampleBatch) -> SampleBatch:
        """Return the batch with all that was rejected."""
        return replace(batch, rejected=self.entries()) if self._counts else batch
