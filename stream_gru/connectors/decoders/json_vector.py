"""Vectors in JSON: ``{"time": .., "v": [1, 2, 3]}``, or several: ``{"time": [.., ..], "v": [[1, 2, 3], [4, 5, 6]]}``.

``v`` is named by ``fields`` of the source, else it is the model's channels in their order.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from stream_gru.connectors.decoders.field_map import Fields, checked_names
from stream_gru.connectors.decoders.field_resolver import MAX_RECORDS, Record, limit_fault
from stream_gru.connectors.decoders.json_object import documents
from stream_gru.connectors.decoders.record_batch import RecordBatch, RecordDecoder
from stream_gru.core.types import DropReason, RawMessage


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
            for record in self._records(found):
                batch.add(record, message, line)

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
