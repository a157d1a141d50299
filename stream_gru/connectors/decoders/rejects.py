"""What one call of a decoder rejects: one `Rejected` for each message and reason, however many records are at fault.

A decoder gives the place of a record as one number: n is line n of the payload, -n the n-th record of a payload that is
a list, both from 1; 0 is the message as a whole.  Line and offset are looked up for the first record of each entry
only, so good records cost nothing, and a payload that is all garbage a few passes over its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from stream_gru.core.types import I64, DropReason, RawMessage, Rejected, SampleBatch

# The message of all rows, or of each row.
Origin = RawMessage | Sequence[RawMessage]


class Rejects:
    """Counts rejected records, and keeps the place of the first one found at fault of each message and reason."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, DropReason], Rejected] = {}
        self._more: dict[tuple[int, DropReason], int] = {}

    def add(self, reason: DropReason, message: RawMessage, place: int = 0, records: int = 1) -> None:
        """Reject ``records`` of a message; ``place`` is that of the first one."""
        key = (id(message), reason)
        if key in self._first:
            self._more[key] = self._more.get(key, 0) + records
        else:
            self._first[key] = Rejected(reason, records, message, *_located(message.payload, place))

    def add_rows(self, reason: DropReason, rows: I64, origin: Origin, place_of: Callable[[int], int]) -> None:
        """Reject rows of a table by their indices, of which there is at least one."""
        if isinstance(origin, RawMessage):
            self.add(reason, origin, place_of(int(rows[0])), len(rows))
        else:
            for row in rows.tolist():
                self.add(reason, origin[row], place_of(row))

    def add_to(self, batch: SampleBatch) -> SampleBatch:
        """Return the batch with all that was rejected, in the order in which it was found."""
        if not self._first:
            return batch
        for key, records in self._more.items():
            first = self._first[key]
            self._first[key] = first._replace(records=first.records + records)
        self._more.clear()
        return replace(batch, rejected=tuple(self._first.values()))


class _Location(NamedTuple):
    row: int = 1
    offset: int | None = 0
    line: bytes = b""


def _located(payload: bytes, place: int) -> _Location:
    """Where a place is, and what stands there."""
    if place > 0:
        rest = payload.split(b"\n", place - 1)[-1]
        return _Location(place, len(payload) - len(rest), rest.partition(b"\n")[0])
    return _json_item(payload, -place) if place else _Location()


def _json_item(payload: bytes, number: int) -> _Location:
    """An item of an array of JSON; other formats do not say where an item begins."""
    try:
        items = msgspec.json.decode(payload, type=list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return _Location(number, None)
    begin = end = 0
    for item in items[:number]:
        begin = payload.index(item, end)
        end = begin + len(memoryview(item))
    return _Location(number, begin, payload[begin:end])
