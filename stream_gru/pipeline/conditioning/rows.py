"""Rows of a batch sorted by stream: the data that the conditioning rules pass on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.types import F32, I64, U8, Dropped, DropReason, Mask, SampleBatch


@dataclass(frozen=True, slots=True)
class Groups:
    """Position of each of G streams in a column sorted by stream: (G,) slot, first row, number of rows, last row."""

    slot: I64
    start: I64
    length: I64
    last: I64

    @staticmethod
    def of(slot: I64) -> Groups:
        """Find the runs of equal slots in a sorted column."""
        if not slot.size:
            nothing = np.zeros(0, np.int64)
            return Groups(nothing, nothing, nothing, nothing)
        start = np.zeros(1, np.int64)
        if slot[0] != slot[-1]:
            start = np.concatenate((start, np.flatnonzero(slot[1:] != slot[:-1]) + 1))
        return Groups.at(slot, start)

    @staticmethod
    def at(slot: I64, start: I64) -> Groups:
        """Groups of a column that begin at the rows ``start`` (G,): streams, or parts of them."""
        end = np.concatenate((start[1:], [slot.size]))
        return Groups(slot[start], start, end - start, end - 1)

    def each(self, values: I64) -> I64:
        """Repeat the value of each group for all its rows, (G,) to (N,)."""
        return np.repeat(values, self.length)

    def previous(self, column: I64, before: I64) -> I64:
        """Shift a column (N,) by one row within each group; the first row of a group gets ``before`` (G,)."""
        if not column.size:
            return column
        shifted = np.empty_like(column)
        shifted[1:] = column[:-1]
        shifted[self.start] = before
        return shifted

    def previous_values(self, values: F32, before: F32) -> F32:
        """Shift the values of all channels as `previous` does, (N, C) and (G, C)."""
        shifted = np.empty_like(values)
        shifted[1:] = values[:-1]
        shifted[self.start] = before
        return shifted


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of ``batch`` that are not dropped, sorted by stream, in order of arrival within a stream.

    ``row``      (N,) index in the batch        ``slot``     (N,) slot of the stream
    ``reset``    (N,) uint8 `ResetReason`       ``dropped``  number of dropped rows by reason; ``drops``: which
    """

    batch: SampleBatch
    row: I64
    slot: I64
    reset: U8
    dropped: dict[DropReason, int]
    drops: list[Dropped]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def time_ns(self) -> I64:
        """Event times, (N,)."""
        return self.batch.time_ns[self.row]

    def groups(self) -> Groups:
        """The groups of rows by stream."""
        return Groups.of(self.slot)

    def keep(self, mask: Mask) -> Self:
        """The rows of the mask; the caller has counted the others as dropped."""
        return type(self)(self.batch, self.row[mask], self.slot[mask], self.reset[mask], self.dropped, self.drops)

    def drop(
        self, reason: DropReason, rows: I64, channel: I64 | None = None, value: NDArray[Any] | None = None
    ) -> None:
        """Count K ``rows`` as dropped, and note each stream's first one; ``channel, value``: (K,), see `Dropped`."""
        if not rows.size:
            return
        self.dropped[reason] = self.dropped.get(reason, 0) + rows.size
        stream = self.batch.stream_index[self.row[rows]]
        for index, first, records in zip(*np.unique(stream, return_index=True, return_counts=True), strict=True):
            self.drops.append(
                Dropped(
                    reason,
                    self.batch.stream_names[index],
                    int(records),
                    int(self.batch.time_ns[self.row[rows[first]]]),
                    -1 if channel is None else int(channel[first]),
                    math.nan if value is None else float(value[first]),
                )
            )


def missing_steps(time: I64, before: I64, period_ns: int) -> I64:
    """Number of missing periods between two event times, rounded to whole periods; 0 for neighbours."""
    return np.maximum((time - before + period_ns // 2) // period_ns - 1, 0)
