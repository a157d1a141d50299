"""Rows of a batch sorted by stream: what the rules hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from stream_gru.core.types import F32, I64, U8, DropReason, Mask, SampleBatch


@dataclass(frozen=True, slots=True)
class Groups:
    """Where each stream lies in a column sorted by stream: (G,) slots, first row, number of rows, last row."""

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
        """The stretches of a column that begin at ``start`` (G,): streams, or finer pieces of them."""
        end = np.concatenate((start[1:], [slot.size]))
        return Groups(slot[start], start, end - start, end - 1)

    def each(self, values: I64) -> I64:
        """Repeat a value of each stream for all its rows."""
        return np.repeat(values, self.length)

    def previous(self, column: I64, before: I64) -> I64:
        """Shift a column by a row within each stream; the first row of a stream gets ``before``."""
        if not column.size:
            return column
        shifted = np.empty_like(column)
        shifted[1:] = column[:-1]
        shifted[self.start] = before
        return shifted

    def previous_values(self, values: F32, before: F32) -> F32:
        """The same for the values of all channels, (N, C) and (G, C)."""
        shifted = np.empty_like(values)
        shifted[1:] = values[:-1]
        shifted[self.start] = before
        return shifted


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of ``batch`` that are still in, sorted by stream, in order of arrival within one.

    ``row`` (N,) their places in the batch; ``slot`` (N,) of their streams; ``reset`` (N,) uint8 `ResetReason` before
    them; ``dropped`` counts those that are out, by reason.
    """

    batch: SampleBatch
    row: I64
    slot: I64
    reset: U8
    dropped: dict[DropReason, int]

    def __len__(self) -> int:
        return len(self.row)

    @property
    def time_ns(self) -> I64:
        """Event times, (N,)."""
        return self.batch.time_ns[self.row]

    def groups(self) -> Groups:
        """Where each stream lies."""
        return Groups.of(self.slot)

    def keep(self, mask: Mask) -> Self:
        """The rows of the mask; the others must have been counted."""
        return type(self)(self.batch, self.row[mask], self.slot[mask], self.reset[mask], self.dropped)

    def count(self, reason: DropReason, dropped: Mask) -> None:
        """Count dropped rows for a reason."""
        n = int(np.count_nonzero(dropped))
        if n:
            self.dropped[reason] = self.dropped.get(reason, 0) + n


def missing_steps(time: I64, before: I64, period_ns: int) -> I64:
    """How many periods lie empty between two times (0 when they are neighbours or closer)."""
    return np.maximum((time - before + period_ns // 2) // period_ns - 1, 0)
