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

from stream_gru.config.train_schema import InputConfig
from stream_gru.core.timestamps import UNITS_NS
from stream_gru.core.types import I64, NS_PER_S, DropReason, RawMessage, Rejected, SampleBatch

_SHOWN_NAMES = 8
_YEAR_S = 31_556_952
_FIRST_YEAR, _LAST_YEAR = 2000, 2100  # of a time that is probably right

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


# ---- what to change, for the log ------------------------------------------------------------------------------------


def explanation(entry: Rejected, wanted: InputConfig, columns: Sequence[str]) -> str:
    """Which field a record lacks and which it has, or which unit its time seems to have; empty where neither is known.

    ``columns``: the fields of the channels.
    """
    record = _record(entry)
    if not record:
        return ""
    if entry.reason is DropReason.MISSING_FIELD:
        return _absent(record, wanted, columns)
    return _likely_unit(record, wanted) if entry.reason is DropReason.TIMESTAMP else ""


def _record(entry: Rejected) -> dict[str, object]:
    """The fields of a JSON object, or of a CSV row with a header; empty for any other record."""
    if entry.message is None:
        return {}
    text = entry.line or entry.message.payload
    try:
        found = msgspec.json.decode(text)
        return found if isinstance(found, dict) else {}
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        names, cells = (part.decode(errors="replace").strip().split(",") for part in (entry.message.header, text))
        return dict(zip(names, cells, strict=True)) if len(names) == len(cells) and len(names) > 1 else {}


def _absent(record: dict[str, object], wanted: InputConfig, columns: Sequence[str]) -> str:
    has = ", ".join(str(name)[:80] for name in list(record)[:_SHOWN_NAMES]) + (", ..." * (len(record) > _SHOWN_NAMES))
    for name in (wanted.time, wanted.stream):
        if name and record.get(name.partition(".")[0]) is None:
            return f'no "{name}" (has {has})'
    if all(name.partition(".")[0] not in record for name in columns):
        return f"none of the channels {', '.join(columns[:_SHOWN_NAMES])} (has {has})"
    return ""


def _likely_unit(record: dict[str, object], wanted: InputConfig) -> str:
    try:
        value = float(str(record[wanted.time]))
        years = {unit: int(1970 + value * ns / NS_PER_S / _YEAR_S) for unit, ns in UNITS_NS.items()}
    except (KeyError, ValueError, OverflowError):
        return ""
    if wanted.time_unit not in years:
        return f"{wanted.time} = {value:.16g}: expected {wanted.time_unit}"
    likely = [unit for unit, year in years.items() if _FIRST_YEAR <= year < _LAST_YEAR and unit != wanted.time_unit]
    question = f': time_unit = "{likely[0]}"?' if likely else ""
    return f"{wanted.time} = {value:.16g} read as {wanted.time_unit} is the year {years[wanted.time_unit]}{question}"
