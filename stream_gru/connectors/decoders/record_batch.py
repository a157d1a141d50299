"""Records of any number of messages, gathered so that they become columns together; and the decoders' common loop.

A live message holds one record: a table of numpy columns for each message would cost more than all other steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from stream_gru.connectors.decoders.field_map import Column, Fields, build_batch
from stream_gru.connectors.decoders.rejects import Rejects
from stream_gru.connectors.decoders.text import BYTE_ORDER_MARK, decoded_lines, is_blank
from stream_gru.core.types import DropReason, RawMessage, SampleBatch


class RecordBatch:
    """The records of one call of `decode`, in order, and what was rejected.

    ``place`` is n for line n of the payload, -n for the n-th record of a payload that is a list, both from 1; 0 for the
    message as a whole.
    """

    def __init__(self, resolver: FieldResolver) -> None:
        self._resolver = resolver
        self._rows: list[Record] = []
        self._messages: list[RawMessage] = []
        self._places: list[int] = []
        self._keys: dict[int, str] = {}  # by row, where a record names another stream than its message
        self._rejects = Rejects()

    def reject(self, reason: DropReason, message: RawMessage, place: int = 0) -> None:
        """Reject one record of a message."""
        self._rejects.add(reason, message, place)

    def text(self, message: RawMessage) -> str | None:
        """The payload as text without a byte order mark; None, and rejected, where it is not UTF-8 or holds NUL."""
        try:
            text = message.payload.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            self.reject(DropReason.ENCODING, message)
            return None
        return text[1:] if text[:1] == BYTE_ORDER_MARK else text

    def lines(self, message: RawMessage) -> list[str]:
        """The lines of the payload as text; one that is not UTF-8, holds NUL or is too long is rejected, and blank."""
        return decoded_lines(message, self._rejects)

    def add(self, record: object, message: RawMessage, place: int = 0, key: str | None = None) -> None:
        """Add an object of a message, or reject it where it is a `DropReason` or no object.

        ``key`` is the stream that the record names itself.
        """
        if type(record) is dict:
            record = self._resolver.resolve(record, message.channel)
        if type(record) is dict:
            if key is not None:
                self._keys[len(self._rows)] = key
            self._rows.append(record)
            self._messages.append(message)
            self._places.append(place)
        else:
            self._rejects.add(record if isinstance(record, DropReason) else DropReason.TYPE, message, place)

    def add_each(self, records: Sequence[object], message: RawMessage) -> None:
        """Add all objects of one payload; none at all, or more than `MAX_RECORDS`, are one reject."""
        if len(records) > MAX_RECORDS:
            self.reject(DropReason.TOO_LARGE, message)
            return
        if not records:
            self.reject(DropReason.MISSING_FIELD, message)
        for number, record in enumerate(records, 1):
            self.add(record, message, -number)

    def build(self) -> SampleBatch:
        """All records as one batch."""
        rows, messages = self._rows, self._messages

        def column(name: str) -> Column | None:
            cells = [record.get(name) for record in rows]
            return None if cells.count(None) == len(cells) else cells

        keys = [self._keys.get(row, message.key) for row, message in enumerate(messages)] if self._keys else None
        alone = len(messages) == 1 or (len(messages) > 1 and all(message is messages[0] for message in messages))
        batch = build_batch(
            self._resolver.fields,
            len(rows),
            column,
            messages[0] if alone else messages,
            self._rejects,
            place_of=self._places.__getitem__,
            keys=keys,
        )
        return self._rejects.add_to(batch)


class RecordDecoder:
    """Base of the decoders whose messages hold records: a subclass adds those of one message to a batch (`read`).

    A live message that is blank, but for ``separators``, is rejected; ``separators`` None: payloads are not text.
    """

    separators: str | None = ""

    def __init__(self, fields: Fields) -> None:
        self.resolver = FieldResolver(fields)

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        batch, separators, read = RecordBatch(self.resolver), self.separators, self.read
        for message in raw:
            if message.fault is not None:
                batch.reject(message.fault, message)
            elif separators is not None and is_blank(message, separators):
                batch.reject(DropReason.PARSE, message)
            else:
                read(message, batch)
        return batch.build()

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add the records of a message to ``batch``, or reject them."""
        raise NotImplementedError


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
