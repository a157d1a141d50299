"""Arrow record batches, the form in which Parquet files are read.  Needs pyarrow (``stream-gru[parquet]``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from stream_gru.decoders.fields import Column, Fields, assemble
from stream_gru.errors import DataError
from stream_gru.types import RawMessage, SampleBatch, concatenate, empty_batch


class ArrowDecoder:
    """Reads messages whose payload is an Arrow IPC stream."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order.  Raises DataError when a column is missing or bytes are damaged."""
        batches: list[SampleBatch] = []
        for message in raw:
            try:
                batches += [self._decode_one(message.key, table) for table in _tables(message.payload)]
            except (pa.ArrowException, OSError, EOFError, ValueError) as error:  # what pyarrow raises for damage
                raise DataError(f"{message.key}: not an Arrow stream: {error}") from error
        return concatenate(batches or [empty_batch(len(self._fields.columns))], len(self._fields.columns))

    def _decode_one(self, key: str, table: Any) -> SampleBatch:
        names = table.schema.names
        missing = [name for name in self._fields.required if name not in names]
        if missing:
            raise DataError(f"{key}: expected a column {missing[0]!r}, got {', '.join(names)}; see [input]")
        twice = [name for name in self._fields.named if names.count(name) > 1]
        if twice:
            raise DataError(f"{key}: expected one column {twice[0]!r}, got several")

        def column(name: str) -> Column | None:
            return _cells(table.column(name)) if name in names else None

        return assemble(self._fields, table.num_rows, column, key)


def _tables(payload: bytes) -> list[Any]:
    with pa.ipc.open_stream(payload) as stream:
        tables = list(stream)
    for table in tables:
        table.validate(full=True)
    return tables


def _cells(column: Any) -> Column:
    """Instants and floats as numpy (NaT and NaN for none), whole numbers where none is missing, else plain objects."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    nullable = pa.types.is_floating(kind) or pa.types.is_timestamp(kind)
    if nullable or (pa.types.is_integer(kind) and not column.null_count):
        cells: Column = column.to_numpy(zero_copy_only=False)
        return cells
    objects: Column = column.to_pylist()
    return objects
