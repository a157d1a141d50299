"""Arrow record batches, the form in which Parquet files are read.  Needs pyarrow (``stream-gru[parquet]``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from stream_gru.connectors.decoders.field_map import Column, DictionaryColumn, Fields, InvalidColumn, build_batch
from stream_gru.connectors.decoders.rejects import Rejects
from stream_gru.connectors.decoders.text import origin, shown
from stream_gru.core.concatenate import concatenate
from stream_gru.core.errors import DataError
from stream_gru.core.types import RawMessage, SampleBatch, empty_batch

# Types whose Python values a field can have.
_PLAIN = (
    pa.types.is_integer,
    pa.types.is_boolean,
    pa.types.is_decimal,
    pa.types.is_null,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
)


class ArrowDecoder:
    """Reads messages whose payload is an Arrow IPC stream."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order.  Raises DataError when a column is missing or bytes are damaged."""
        batches: list[SampleBatch] = []
        rejects = Rejects()
        for message in raw:
            if message.fault is not None:
                rejects.add(message.fault, message)
                continue
            try:
                with pa.ipc.open_stream(message.payload) as stream:
                    self._check(origin(message), stream.schema.names)
                    done = 0
                    for table in stream:
                        batches.append(self._rows(message, table, done, rejects))
                        done += table.num_rows
            # The exceptions of pyarrow for damaged bytes.
            except (pa.ArrowException, OSError, EOFError, ValueError, OverflowError) as error:
                raise DataError(f"{origin(message)}: not an Arrow stream: {error}") from error
        channels = len(self._fields.columns)
        return rejects.add_to(concatenate(batches or [empty_batch(channels)], channels))

    def _check(self, place: str, names: list[str]) -> None:
        missing = [name for name in self._fields.required if name not in names]
        if missing:
            raise DataError(f"{place}: expected a column {missing[0]!r}, got {shown(', '.join(names))}; see [input]")
        twice = [name for name in self._fields.named if names.count(name) > 1]
        if twice:
            raise DataError(f"{place}: expected one column {twice[0]!r}, got several")

    def _rows(self, message: RawMessage, table: Any, done: int, rejects: Rejects) -> SampleBatch:
        """The rows of a table; ``done`` are those of the tables before it."""
        table.validate(full=True)
        names = self._fields.names_only

        def column(name: str) -> Column | None:
            if name not in table.schema.names:
                return None
            read = _dictionary if name in names else _cells
            return read(table.column(name))

        return build_batch(
            self._fields, table.num_rows, column, message, rejects, place_of=lambda row: -(done + row + 1)
        )


def _dictionary(column: Any) -> Column:
    """A column of names, with one Python object for each distinct name instead of one for each cell."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_floating(kind) or any(fits(kind) for fits in _PLAIN)) or pa.types.is_null(kind):
        return _cells(column)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    codes = column.indices.cast(pa.int64()).fill_null(-1).to_numpy()
    used = np.zeros(len(column.dictionary) + 1, np.bool_)
    used[codes] = True
    here = np.flatnonzero(used[:-1])  # a dictionary may serve many tables
    place = np.full(len(used), -1, np.int64)
    place[here] = np.arange(len(here))
    return DictionaryColumn(_cells(column.dictionary.take(pa.array(here))), place[codes])


def _cells(column: Any) -> Column:
    """Instants and floats as numpy (NaT and NaN for none), so integers where none is missing, else Python objects.

    Decision: no temporal value becomes a Python datetime, which has neither nanoseconds nor years beyond 9999.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_date(kind):
        column = column.cast(pa.timestamp("s" if pa.types.is_date32(kind) else "ms"))
        kind = column.type
    nullable = pa.types.is_floating(kind) or pa.types.is_timestamp(kind)
    if nullable or (pa.types.is_integer(kind) and not column.null_count):
        cells: Column = column.to_numpy(zero_copy_only=False)
        return cells
    if not any(fits(kind) for fits in _PLAIN):
        return InvalidColumn(column.is_null().to_pylist())
    objects: Column = column.to_pylist()
    return objects
