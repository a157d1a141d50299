"""JSON objects, ``{"time": ..., "flow": 41.2, ...}``: one a message, an array of them, or one a line.

Source: RFC 8259.  null and absent keys mean missing.  Non-standard JSON (NaN, Infinity, 1e400, a trailing comma) and
too deep nesting are rejected.  Of a key that occurs twice the last one counts, as in most readers.

Vectors are ``{"time": .., "v": [1, 2, 3]}``, or several: ``{"time": [.., ..], "v": [[1, 2, 3], [4, 5, 6]]}``.  ``v`` is
named by ``fields`` of the source, else it is the model's channels in their order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from stream_gru.connectors.decoders.field_map import Fields, checked_names
from stream_gru.connectors.decoders.record_batch import MAX_RECORDS, Record, RecordBatch, RecordDecoder, limit_fault
from stream_gru.connectors.decoders.text import BYTE_ORDER_MARK
from stream_gru.core.types import DropReason, RawMessage

_T = TypeVar("_T")
_NOT_FINITE = re.compile(r"(?<=[:,\[\s])-?(?:NaN|Infinity)(?=[,\]}\s])")


class JsonDecoder(RecordDecoder):
    """Reads messages whose payload is one object; see `FieldResolver` for where its fields are looked for."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self._decoder = msgspec.json.Decoder(dict[str, object])

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add the object."""
        text = batch.text(message)
        if text is not None:
            found = parsed(self._decoder, text)
            batch.add(found, message)


class JsonArrayDecoder(RecordDecoder):
    """Reads messages whose payload is an array of objects.  An unusable object rejects only itself."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self._decoder = msgspec.json.Decoder(list[object])

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add the objects."""
        text = batch.text(message)
        if text is None:
            return
        found = parsed(self._decoder, text)
        if isinstance(found, DropReason):
            batch.reject(found, message)
        else:
            batch.add_each(found, message)


class JsonLinesDecoder(RecordDecoder):
    """Reads messages whose payload is lines of one object each; blank lines hold no record."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self._decoder = msgspec.json.Decoder(dict[str, object])

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add an object for each line."""
        for number, line in enumerate(batch.lines(message), 1):
            if line and not line.isspace():
                found = parsed(self._decoder, line.removeprefix(BYTE_ORDER_MARK))
                batch.add(found, message, number)


def parsed(decoder: msgspec.json.Decoder[_T], text: str) -> _T | DropReason:
    """Return what the text holds, or the reason to reject it."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        # Either another type than expected, or a number that no float64 holds.
        return DropReason.OUT_OF_RANGE if "out of range" in str(error) else DropReason.TYPE
    except RecursionError:
        return DropReason.TOO_DEEP
    except (msgspec.DecodeError, UnicodeError):
        return _unreadable(decoder, text)


def documents(
    decoder: msgspec.json.Decoder[_T], message: RawMessage, batch: RecordBatch
) -> Iterator[tuple[_T | DropReason, int]]:
    """Yield each JSON document of a payload with the number of its line.

    A payload is one document on any number of lines (then the number is 0), or one document on each line.
    """
    every = batch.lines(message)
    lines = {n: text for n, line in enumerate(every, 1) if (text := line.removeprefix(BYTE_ORDER_MARK).strip())}
    if len(lines) > 1 and "\n".join(every).encode() == message.payload:  # no line was rejected
        whole = parsed(decoder, "\n".join(lines.values()))
        if not isinstance(whole, DropReason):
            yield whole, 0
            return
    for number, line in lines.items():
        found = parsed(decoder, line)
        yield found, number if len(every) > 1 else 0


def _unreadable(decoder: msgspec.json.Decoder[Any], text: str) -> DropReason:
    """NON_FINITE where only ``NaN`` or ``Infinity``, which some libraries write, make a text unreadable; else PARSE."""
    without, count = _NOT_FINITE.subn("0", text)
    return DropReason.NON_FINITE if count and not isinstance(parsed(decoder, without), DropReason) else DropReason.PARSE


class JsonVectorDecoder(RecordDecoder):
    """Reads messages whose payload is an object, or one a line, with a vector ``v`` or a list of vectors.

    A vector that is too short is rejected as MISSING_FIELD, one that is too long as PARSE.  Where there are several
    vectors, the time and every other list as long as ``v`` holds one value for each of them.  Raises ConfigError when
    ``fields`` names no channel.
    """

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self._names = checked_names(fields) if fields.names else fields.columns
        self._spread = tuple(name for name in fields.named if name not in self._names)
        self._time = "" if fields.input.time in self._names else fields.input.time
        self._decoder = msgspec.json.Decoder(dict[str, object])

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add a record for each vector."""
        for found, line in documents(self._decoder, message, batch):
            records = list(self._records(found))
            for number, record in enumerate(records, 1):
                batch.add(record, message, line or (-number if len(records) > 1 else 0))

    def _records(self, found: Record | DropReason) -> Iterator[Record | DropReason]:
        if isinstance(found, DropReason):
            yield found
            return
        vector = found.pop("v", None)
        fault = limit_fault(found)  # checked before the object is repeated for each of several vectors
        if fault is not None:
            yield fault
        elif type(vector) is not list:
            yield DropReason.MISSING_FIELD if vector is None else DropReason.TYPE
        elif vector and type(vector[0]) is list:
            yield from self._several(found, vector)
        else:
            yield self._named(found, vector)

    def _several(self, found: Record, vectors: list[object]) -> Iterator[Record | DropReason]:
        if len(vectors) > MAX_RECORDS:
            yield DropReason.TOO_LARGE
            return
        each = {name: found.pop(name) for name in self._spread if _is_list_of(len(vectors), found.get(name))}
        if self._time and self._time not in each:
            yield DropReason.MISSING_FIELD if found.get(self._time) is None else DropReason.PARSE
            return
        for index, vector in enumerate(vectors):
            own = {name: values[index] for name, values in each.items()}  # type: ignore[index]
            yield self._named({**found, **own}, vector)

    def _named(self, record: Record, vector: object) -> Record | DropReason:
        if type(vector) is not list:
            return DropReason.TYPE
        if len(vector) != len(self._names):
            return DropReason.MISSING_FIELD if len(vector) < len(self._names) else DropReason.PARSE
        return {**record, **dict(zip(self._names, vector, strict=True))}


def _is_list_of(count: int, value: object) -> bool:
    return type(value) is list and len(value) == count
