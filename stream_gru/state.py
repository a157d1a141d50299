"""The StateTable: everything that is remembered of every stream, one slot each, as columns.

The rooms that remember something (the pipeline the hidden state, conditioning the clock and the last values, scoring
the pending forecasts and interval scales) declare their columns here, so that one row holds a whole stream: it can be
evicted, exported and stored as one piece, and a batch reads and writes many streams with one numpy operation.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stream_gru.errors import IncompatibleStateError, StateError
from stream_gru.types import I64


@dataclass(frozen=True, slots=True)
class Column:
    """One quantity of each stream: an array of ``shape`` and ``dtype`` that begins as ``initial``."""

    name: str
    shape: tuple[int, ...]
    dtype: DTypeLike
    initial: float | int = 0


class StateTable:
    """Slots for streams.  ``table[name]`` is the whole column, shape (capacity, *column.shape); rows are slots.

    Arrays move when the table grows, so nobody keeps a reference to one across `slots_for`.
    """

    def __init__(self, columns: Iterable[Column], capacity: int = 16) -> None:
        self._columns = {column.name: column for column in columns}
        self._arrays = {column.name: _filled(column, capacity) for column in self._columns.values()}
        self._slot_of: dict[str, int] = {}
        self._free: list[int] = list(range(capacity - 1, -1, -1))
        self._capacity = capacity

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
        """Return a slot for each name, (n,) int64; unknown ones get a fresh slot, or -1 once ``limit`` are in use."""
        slots = np.empty(len(streams), np.int64)
        for index, stream in enumerate(streams):
            known = self._slot_of.get(stream)
            slots[index] = self._claim(stream, limit) if known is None else known
        return slots

    def evict(self, stream: str) -> None:
        """Forget a stream; its slot begins afresh.  Raises KeyError."""
        slot = self._slot_of.pop(stream)
        for column in self._columns.values():
            self._arrays[column.name][slot] = column.initial
        self._free.append(slot)

    def export_row(self, stream: str) -> dict[str, bytes]:
        """Return all a stream is: little-endian bytes of each column.  Raises KeyError."""
        slot = self._slot_of[stream]
        return {name: _little(array[slot]).tobytes() for name, array in self._arrays.items()}

    def import_row(self, stream: str, row: Mapping[str, bytes]) -> None:
        """Put a stream back as `export_row` gave it.

        Raises IncompatibleStateError when the columns differ (another model or version).
        """
        if set(row) != set(self._columns):
            raise IncompatibleStateError(f"{stream}: expected the columns {sorted(self._columns)}, got {sorted(row)}")
        arrays = {name: self._parse(stream, name, data) for name, data in row.items()}
        slot = self._slot_of.get(stream)
        slot = self._claim(stream, self._capacity + 1) if slot is None else slot
        for name, array in arrays.items():
            self._arrays[name][slot] = array

    def copy_row(self, stream: str, other: StateTable, columns: Collection[str] | None = None) -> None:
        """Take a stream over from another table: all its columns, or only those named.  Raises KeyError."""
        (slot,) = self.slots_for([stream], self._capacity + 1)
        for name in self._columns if columns is None else columns:
            self._arrays[name][slot] = other[name][other.slot(stream)]

    def nbytes(self) -> int:
        """Bytes of one stream's row."""
        return sum(int(array[0].nbytes) for array in self._arrays.values())

    def _parse(self, stream: str, name: str, data: bytes) -> NDArray[np.generic]:
        column = self._columns[name]
        dtype = np.dtype(column.dtype).newbyteorder("<")
        if len(data) != dtype.itemsize * int(np.prod(column.shape, dtype=np.int64)):
            raise StateError(f"{stream}: {name}: expected {column.shape} of {dtype}, got {len(data)} bytes")
        return np.frombuffer(data, dtype).reshape(column.shape)

    def _claim(self, stream: str, limit: int) -> int:
        if len(self._slot_of) >= limit:
            return -1
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._slot_of[stream] = slot
        return slot

    def _grow(self) -> None:
        """Double the table: the cost of a stream stays constant however many there are."""
        old, self._capacity = self._capacity, 2 * self._capacity
        for column in self._columns.values():
            array = _filled(column, self._capacity)
            array[:old] = self._arrays[column.name]
            self._arrays[column.name] = array
        self._free = list(range(self._capacity - 1, old - 1, -1))


def _filled(column: Column, capacity: int) -> NDArray[np.generic]:
    return np.full((capacity, *column.shape), column.initial, column.dtype)


def _little(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
