"""The state table: the whole state of every stream, one row each, stored as columns.

    slots_for(names) ─▶ columns, read and written by whole batches ─▶ dirty_rows() ─▶ bytes, one row per stream
                                                       restore(name, columns) ◀─ split_row(layout, bytes)

Each part of the pipeline declares its columns: the pipeline the hidden state, conditioning the event times and last
values, scoring the pending forecasts and interval scales.  One row therefore holds a whole stream and can be evicted,
exported and stored as one piece, while a batch reads and writes many streams with one numpy operation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stream_gru.core.errors import IncompatibleStateError, StateError
from stream_gru.core.types import I64, U8

_PART_BYTES = 2**20

RowLayout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype (little-endian, such as ``<f4``) and shape of each column, in their order within a row."""


@dataclass(frozen=True, slots=True)
class Column:
    """One quantity of each stream: an array of ``shape`` and ``dtype``, filled with ``initial`` for a new stream."""

    name: str
    shape: tuple[int, ...]
    dtype: DTypeLike
    initial: float | int = 0


class StateTable:
    """Slots for streams.  ``table[name]`` is the whole column, (capacity, *column.shape), indexed by slot.

    The arrays are replaced when the table grows: do not keep a reference to one across `slots_for`.
    """

    def __init__(self, columns: Iterable[Column], capacity: int = 16) -> None:
        self._columns = {column.name: column for column in columns}
        self._arrays = {column.name: _filled(column, capacity) for column in self._columns.values()}
        self._slot_of: dict[str, int] = {}
        self._free: list[int] = list(range(capacity - 1, -1, -1))
        self._capacity = capacity
        self._names = [""] * capacity
        self._dirty = np.zeros(capacity, np.bool_)

    def __len__(self) -> int:
        return len(self._slot_of)

    def __contains__(self, stream: str) -> bool:
        return stream in self._slot_of

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self._arrays[column]

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of all streams, oldest first."""
        return tuple(self._slot_of)

    def slot(self, stream: str) -> int:
        """Return the slot of a known stream.  Raises KeyError."""
        return self._slot_of[stream]

    def slots_for(self, streams: Sequence[str], limit: int) -> I64:
        """Return the slot of each name, (n,) int64; a new name gets a new slot, or -1 when ``limit`` are in use."""
        slots = np.empty(len(streams), np.int64)
        for index, stream in enumerate(streams):
            known = self._slot_of.get(stream)
            slots[index] = self._claim(stream, limit) if known is None else known
        self._dirty[slots[slots >= 0]] = True
        return slots

    def mark_dirty(self, stream: str | None = None) -> None:
        """Mark the row of a stream, or all (None), as changed outside a batch.  Raises KeyError."""
        slots = self._slot_of.values() if stream is None else [self._slot_of[stream]]
        self._dirty[np.fromiter(slots, np.int64)] = True

    def evict(self, stream: str) -> None:
        """Remove a stream and reset its slot to the initial values.  Raises KeyError."""
        slot = self._slot_of.pop(stream)
        for column in self._columns.values():
            self._arrays[column.name][slot] = column.initial
        self._dirty[slot] = False
        self._names[slot] = ""
        self._free.append(slot)

    @property
    def row_layout(self) -> RowLayout:
        """Layout of the bytes of a row, for `split_row`."""
        return tuple((c.name, np.dtype(c.dtype).newbyteorder("<").str, c.shape) for c in self._columns.values())

    def row(self, stream: str) -> bytes:
        """The whole state of a stream as bytes in the layout `row_layout`.  Raises KeyError."""
        return self._rows(np.array([self._slot_of[stream]]))[0].tobytes()

    def dirty_rows(self) -> DirtyRows:
        """Name and row of each stream that was in a batch, or marked dirty, since the last `mark_clean`.

        To be used before the table changes.
        """
        return DirtyRows(self, np.flatnonzero(self._dirty))

    def named_rows(self, slots: I64) -> list[tuple[str, bytes]]:
        """Name and row of the streams in (n,) slots."""
        rows = self._rows(slots)
        return [(self._names[slot], row.tobytes()) for slot, row in zip(slots.tolist(), rows, strict=True)]

    def mark_clean(self) -> None:
        """Every dirty row has been stored."""
        self._dirty[:] = False

    def restore(self, stream: str, columns: Mapping[str, NDArray[Any]]) -> None:
        """Set the state of a stream; columns that are not among ``columns`` get their initial values.

        Raises IncompatibleStateError for a column of another name, shape or dtype, and changes nothing then.
        """
        for name, array in columns.items():
            own = self._columns.get(name)
            if own is None or array.shape != own.shape or array.dtype != np.dtype(own.dtype):
                wanted = "no such column" if own is None else f"{own.shape} of {np.dtype(own.dtype)}"
                raise IncompatibleStateError(f"{stream}: {name}: expected {wanted}, got {array.shape} of {array.dtype}")
        if stream in self._slot_of:
            self.evict(stream)
        slot = self._claim(stream, self._capacity + 1)
        for name, array in columns.items():
            self._arrays[name][slot] = array

    def nbytes(self) -> int:
        """Bytes of one stream's row."""
        return sum(int(array[0].nbytes) for array in self._arrays.values())

    def _rows(self, slots: I64) -> U8:
        """Rows of (n,) slots as bytes, (n, bytes per row) uint8."""
        parts = [
            np.ascontiguousarray(array[slots], array.dtype.newbyteorder("<")).view(np.uint8).reshape(len(slots), -1)
            for array in self._arrays.values()
        ]
        return np.concatenate(parts, axis=1)

    def _claim(self, stream: str, limit: int) -> int:
        if len(self._slot_of) >= limit:
            return -1
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slot_of[stream] = slot
        self._names[slot] = stream
        return slot

    def _grow(self) -> None:
        """Double the capacity, so that the cost per new stream is constant on average."""
        old, self._capacity = self._capacity, 2 * self._capacity
        for column in self._columns.values():
            array = _filled(column, self._capacity)
            array[:old] = self._arrays[column.name]
            self._arrays[column.name] = array
        self._free = list(range(self._capacity - 1, old - 1, -1))
        self._names += [""] * old
        self._dirty = np.concatenate((self._dirty, np.zeros(old, np.bool_)))


class DirtyRows(Collection[tuple[str, bytes]]):
    """Rows of a table, made while they are read: all of a large fleet together would double its memory."""

    def __init__(self, table: StateTable, slots: I64) -> None:
        self._table, self._slots = table, slots
        self._part = max(1, _PART_BYTES // max(1, table.nbytes()))

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        for begin in range(0, len(self._slots), self._part):
            yield from self._table.named_rows(self._slots[begin : begin + self._part])

    def __contains__(self, item: object) -> bool:
        return any(item == row for row in self)


def split_row(layout: RowLayout, data: bytes) -> dict[str, NDArray[Any]]:
    """The columns of a row.  Raises StateError when its length is not that of ``layout``."""
    record = _record(layout)
    if len(data) != record.itemsize:
        raise StateError(f"expected a row of {record.itemsize} bytes, got {len(data)}")
    row = np.frombuffer(data, record) if data else np.zeros(1, record)
    return {name: _native(row[name].reshape(shape)) for name, _, shape in layout}


@lru_cache(maxsize=4)
def _record(layout: RowLayout) -> np.dtype[np.void]:
    """Structured dtype of a row.  Raises StateError for a layout that is not one of numeric columns."""
    try:
        record = np.dtype(list(layout))
        if record.hasobject or "" in (name for name, _, _ in layout):
            raise ValueError("expected named columns of numbers")
        return record
    except (TypeError, ValueError, OverflowError) as error:
        raise StateError(f"the layout of a stored row cannot be read: {error!r:.200}") from error


def _filled(column: Column, capacity: int) -> NDArray[np.generic]:
    return np.full((capacity, *column.shape), column.initial, column.dtype)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
