"""The StateTable: everything that is remembered of every stream, one slot each, as columns.

    slots_for(names) ─▶ columns, read and written by whole batches ─▶ changed_rows() ─▶ bytes, a row a stream
                                                       restore(name, columns) ◀─ split_row(form, bytes)

The rooms that remember something (the pipeline the hidden state, conditioning the clock and the last values, scoring
the pending forecasts and interval scales) declare their columns here, so that one row holds a whole stream: it can be
evicted, exported and stored as one piece, and a batch reads and writes many streams with one numpy operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stream_gru.core.errors import IncompatibleStateError, StateError
from stream_gru.core.types import I64, U8

RowLayout = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, dtype (little-endian) and shape of each column, in the order in which a row has them."""


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
        """Return a slot for each name, (n,) int64; unknown ones get a fresh slot, or -1 once ``limit`` are in use."""
        slots = np.empty(len(streams), np.int64)
        for index, stream in enumerate(streams):
            known = self._slot_of.get(stream)
            slots[index] = self._claim(stream, limit) if known is None else known
        self._dirty[slots[slots >= 0]] = True
        return slots

    def mark_dirty(self, stream: str | None = None) -> None:
        """Note that a stream, or each, was changed by other means than a batch.  Raises KeyError."""
        slots = self._slot_of.values() if stream is None else [self._slot_of[stream]]
        self._dirty[np.fromiter(slots, np.int64)] = True

    def evict(self, stream: str) -> None:
        """Forget a stream; its slot begins afresh.  Raises KeyError."""
        slot = self._slot_of.pop(stream)
        for column in self._columns.values():
            self._arrays[column.name][slot] = column.initial
        self._dirty[slot] = False
        self._names[slot] = ""
        self._free.append(slot)

    @property
    def row_layout(self) -> RowLayout:
        """How the bytes of a row are to be read."""
        return tuple((c.name, np.dtype(c.dtype).newbyteorder("<").str, c.shape) for c in self._columns.values())

    def row(self, stream: str) -> bytes:
        """All that a stream is, as `split_row` reads it.  Raises KeyError."""
        return self._rows(np.array([self._slot_of[stream]]))[0].tobytes()

    def dirty_rows(self) -> list[tuple[str, bytes]]:
        """Name and row of each stream that was in a batch, or touched, since the last `stored`."""
        slots = np.flatnonzero(self._dirty)
        if not slots.size:
            return []
        rows = self._rows(slots)
        return [(self._names[slot], row.tobytes()) for slot, row in zip(slots.tolist(), rows, strict=True)]

    def mark_clean(self) -> None:
        """All that has changed was written down."""
        self._dirty[:] = False

    def restore(self, stream: str, columns: Mapping[str, NDArray[Any]]) -> None:
        """Put a stream back: what is not among ``columns`` begins afresh.

        Raises IncompatibleStateError for a column of another name, shape or type; then nothing is changed.
        """
        for name, array in columns.items():
            mine = self._columns.get(name)
            if mine is None or array.shape != mine.shape or array.dtype != np.dtype(mine.dtype):
                wanted = "no such column" if mine is None else f"{mine.shape} of {np.dtype(mine.dtype)}"
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
        """Rows of (n,) slots as bytes, (n, length of a row)."""
        parts = [
            np.ascontiguousarray(_little(array[slots])).view(np.uint8).reshape(len(slots), -1)
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
        """Double the table: the cost of a stream stays constant however many there are."""
        old, self._capacity = self._capacity, 2 * self._capacity
        for column in self._columns.values():
            array = _filled(column, self._capacity)
            array[:old] = self._arrays[column.name]
            self._arrays[column.name] = array
        self._free = list(range(self._capacity - 1, old - 1, -1))
        self._names += [""] * old
        self._dirty = np.concatenate((self._dirty, np.zeros(old, np.bool_)))


def split_row(layout: RowLayout, data: bytes) -> dict[str, NDArray[Any]]:
    """The columns of a row.  Raises StateError when it has not the length that ``form`` asks for."""
    record = _record(layout)
    if len(data) != record.itemsize:
        raise StateError(f"expected a row of {record.itemsize} bytes, got {len(data)}")
    row = np.frombuffer(data, record) if data else np.zeros(1, record)
    return {name: _native(row[name].reshape(shape)) for name, _, shape in layout}


@lru_cache(maxsize=4)
def _record(layout: RowLayout) -> np.dtype[np.void]:
    """A row as numpy sees it.  Raises StateError."""
    try:
        record = np.dtype(list(layout))
        if record.hasobject or "" in (name for name, _, _ in layout):
            raise ValueError("expected named columns of numbers")
        return record
    except (TypeError, ValueError, OverflowError) as error:
        raise StateError(f"the form of a stored row cannot be read: {error!r:.200}") from error


def _filled(column: Column, capacity: int) -> NDArray[np.generic]:
    return np.full((capacity, *column.shape), column.initial, column.dtype)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _little(array: NDArray[np.generic]) -> NDArray[np.generic]:
    return array.astype(array.dtype.newbyteorder("<"), copy=False)
