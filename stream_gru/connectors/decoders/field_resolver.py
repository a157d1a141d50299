"""Where an object keeps the wanted fields, and the limits within which it is looked at."""

from __future__ import annotations

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.types import DropReason

# Of one object; and of one payload, whose size the source bounds.
MAX_FIELDS = 256
MAX_NAME_BYTES = 256
MAX_DEPTH = 16
MAX_RECORDS = 100_000
_NESTED = frozenset({dict, list})

Record = dict[str, object]


class FieldResolver:
    """Finds the wanted fields of an object: in the object itself, in its ``fields``, in its ``tags`` (Telegraf's JSON).

    A name with points (``ENERGY.Power``) that is found in none of them is a path through nested objects.
    """

    def __init__(self, fields: Fields) -> None:
        self.fields = fields
        self.columns = frozenset(fields.columns)
        self._others = tuple(name for name in fields.named if name not in self.columns)
        self._paths = tuple((name, name.split(".")) for name in fields.named if "." in name)

    def resolve(self, record: Record, channel: str = "") -> Record | DropReason:
        """Return the record with all wanted fields at its top, or the reason to reject it.

        ``channel`` is the only channel that the record is about, where its topic names one.
        """
        fault = limit_fault(record)
        if fault is not None:
            return fault
        if "fields" in record or "tags" in record:
            for name in ("fields", "tags"):
                inner = record.get(name)
                if type(inner) is dict:
                    fault = limit_fault(inner)
                    if fault is not None:
                        return fault
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
        """The record with the value of one channel, which stands under the channel's field or under ``value``."""
        index = self.fields.index_of(channel)
        if index < 0:
            return DropReason.UNKNOWN_STREAM
        column = self.fields.columns[index]
        key = column if column in record else "value"
        if key not in record:
            return DropReason.MISSING_FIELD
        return {**{name: record[name] for name in self._others if name in record}, column: record[key]}


def limit_fault(record: Record) -> DropReason | None:
    """The reason to reject an object with too many fields, unusable names or too deep nesting; None within the limits.

    Keys that are not text, which CBOR allows, name no field.
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
    """Whether a key is short enough for the name of a field."""
    return type(name) is not str or len(name.encode(errors="surrogatepass")) <= MAX_NAME_BYTES


def _is_deeper(record: Record, depth: int) -> bool:
    """Whether objects and arrays are nested more than ``depth`` deep; the record itself is level 1."""
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
