"""Records: objects of any number of messages, gathered so that they become columns together.

A live message holds one record; a table of numpy for each would cost more than all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stream_gru.connectors.decoders.field_map import Column, Fields, assemble
from stream_gru.connectors.decoders.text import is_blank
from stream_gru.core.types import DropReason, RawMessage, SampleBatch

# Of one object; and of one payload, which a source has bounded in bytes already.
MAX_FIELDS = 256
MAX_NAME_BYTES = 256
MAX_DEPTH = 16
MAX_RECORDS = 100_000
_NESTED = frozenset({dict, list})

Record = dict[str, object]


class Shape:
    """Where an object holds the fields.  A name is looked for in the object, in its ``fields``, in its ``tags``.

    A name with points (``ENERGY.Power``) that is nowhere as it stands leads through nested objects.
    ``fields`` and ``tags`` are those of Telegraf's JSON.
    """

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.columns = frozenset(fields.columns)
        self._others = tuple(name for name in fields.named if name not in self.columns)
        self._paths = tuple((name, name.split(".")) for name in fields.named if "." in name)

    def flat(self, record: Record, channel: str = "") -> Record | DropReason:
        """The record with all that was asked for at its top; or why it cannot be used."""
        beyond = beyond_limits(record)
        if beyond is not None:
            return beyond
        if "fields" in record or "tags" in record:
            for name in ("fields", "tags"):
                inner = record.get(name)
                if type(inner) is dict:
                    beyond = beyond_limits(inner)
                    if beyond is not None:
                        return beyond
                    record = {**inner, **record}
        for name, path in self._paths:
            if name not in record:
                found = _follow(record, path)
                if found is not None:
                    record = {**record, name: found}
        if channel:
            return self._one_channel(record, channel)
        return DropReason.MISSING_FIELD if self.columns.isdisjoint(record) else record

    def _one_channel(self, record: Record, channel: str) -> Record | DropReason:
        """An object about one channel, as its topic says: under the channel's field, or as ``value``."""
        index = self.fields.index_of(channel)
        if index < 0:
            return DropReason.UNKNOWN_STREAM
        column = self.fields.columns[index]
        key = column if column in record else "value"
        if key not in record:
            return DropReason.MISSING_FIELD
        return {**{name: record[name] for name in self._others if name in record}, column: record[key]}


class Records:
    """The records of one call, in order, with what each message said about them; and how many were dropped."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._rows: list[Record] = []
        self._keys: list[str] = []
        self._arrivals: list[int] = []
        self.rejected: dict[DropReason, int] = {}

    def drop(self, reason: DropReason) -> None:
        """Count one record that cannot be used."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def drop_all(self, rejected: Mapping[DropReason, int]) -> None:
        """Count what was dropped elsewhere."""
        for reason, n in rejected.items():
            self.rejected[reason] = self.rejected.get(reason, 0) + n

    def faulty(self, message: RawMessage, text: bool = True, besides: str = "") -> bool:
        """Count a message in which there is nothing to decode: a fault, or ``text`` that is blank (see `is_blank`)."""
        if message.fault is not None:
            self.drop(message.fault)
        elif text and is_blank(message, besides):
            self.drop(DropReason.PARSE)
        else:
            return False
        return True

    def text(self, message: RawMessage) -> str | None:
        """The payload as text, without a byte order mark; None, and counted, where it is not UTF-8 or holds NUL."""
        try:
            text = message.payload.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            self.drop(DropReason.ENCODING)
            return None
        return text[1:] if text[:1] == "\ufeff" else text

    def add(self, record: object, message: RawMessage, key: str | None = None) -> None:
        """Take an object of a message, or count a `DropReason`; ``key`` where the record names another stream."""
        if type(record) is dict:
            record = self._shape.flat(record, message.channel)
        if type(record) is dict:
            self._rows.append(record)
            self._keys.append(message.key if key is None else key)
            self._arrivals.append(message.arrival_ns)
        else:
            self.drop(record if isinstance(record, DropReason) else DropReason.TYPE)

    def add_each(self, records: Sequence[object], message: RawMessage) -> None:
        """Take all objects of one payload, of which there is at least one and are not too many."""
        if len(records) > MAX_RECORDS:
            self.drop(DropReason.TOO_LARGE)
            return
        if not records:
            self.drop(DropReason.MISSING_FIELD)
        for record in records:
            self.add(record, message)

    def batch(self) -> SampleBatch:
        """All records as one batch."""
        rows = self._rows

        def column(name: str) -> Column | None:
            cells = [record.get(name) for record in rows]
            return None if cells.count(None) == len(cells) else cells

        keys, arrivals = set(self._keys), set(self._arrivals)
        batch = assemble(
            self._shape.fields,
            len(rows),
            column,
            keys.pop() if len(keys) == 1 else self._keys,
            arrivals.pop() if len(arrivals) == 1 else self._arrivals,
        )
        return counted(batch, self.rejected)


def counted(batch: SampleBatch, rejected: Mapping[DropReason, int]) -> SampleBatch:
    """The batch with more rejects."""
    if not rejected:
        return batch
    total = dict(batch.rejected)
    for reason, n in rejected.items():
        total[reason] = total.get(reason, 0) + n
    return replace(batch, rejected=total)


def beyond_limits(record: Record) -> DropReason | None:
    """Why an object has too many fields, such names, or such a depth that nobody shall look into it; None if not.

    Keys that are no text, as CBOR may have them, name nothing.
    """
    if len(record) > MAX_FIELDS:
        return DropReason.TOO_MANY_FIELDS
    try:
        names = "".join(record)
    except TypeError:
        names = "".join(name for name in record if type(name) is str)
    if "\0" in names:
        return DropReason.ENCODING
    if (len(names) > MAX_NAME_BYTES or not names.isascii()) and not all(map(is_name, record)):
        return DropReason.TOO_LARGE
    if _NESTED.isdisjoint(map(type, record.values())) or not _is_deeper(record, MAX_DEPTH):
        return None
    return DropReason.TOO_DEEP


def is_name(name: object) -> bool:
    """Whether it is not too long for the name of a field."""
    return type(name) is not str or len(name.encode(errors="surrogatepass")) <= MAX_NAME_BYTES


def _is_deeper(record: Record, depth: int) -> bool:
    """Whether objects and arrays stand more than ``depth`` deep in one another, the record itself being the first."""
    level: list[object] = [record]
    for _ in range(depth):
        insides = [outer.values() if type(outer) is dict else outer for outer in level]
        level = [inner for inside in insides for inner in inside if type(inner) in _NESTED]  # type: ignore[attr-defined]
        if not level:
            return False
    return True


def _follow(record: Record, path: list[str]) -> object:
    found: object = record
    for name in path:
        if type(found) is not dict:
            return None
        found = found.get(name)
    return found
