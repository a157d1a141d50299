"""Rules 3 and 4, gaps and windows: rows become steps, missing ones are inserted, resets are decided."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_gru.core.types import F32, I64, U8, DropReason, Mask, ResetReason
from stream_gru.model.calendar_features import calendar_inputs
from stream_gru.pipeline.conditioning.imputation import Filled
from stream_gru.pipeline.conditioning.rows import Groups, missing_steps
from stream_gru.pipeline.conditioning.spec import ConditioningSpec
from stream_gru.pipeline.state_table import StateTable


@dataclass(frozen=True, slots=True)
class Steps:
    """What the engine shall do: steps sorted by stream, in order of time within a stream.

    G streams with steps; T steps in all, inserted ones included.

    ``slot``      (G,) slots in the table       ``start, length``  (G,) the stretch of each stream in the T steps
    ``group``     (T,) index of the stream      ``x``              (T, I) float32 channels, then calendar inputs
    ``time_ns``   (T,) event time               ``row``            (T,) row in the batch, -1 for an inserted step
    ``reset``     (T,) uint8 `ResetReason` to carry out before the step
    ``observed``  (T, C) True where the value was measured, False where it was filled in
    ``count``     (T,) int64, steps since the last reset, this one included
    ``window``    W of the windowed regime, 0 in the stateful one
    """

    slot: I64
    start: I64
    length: I64
    group: I64
    x: F32
    time_ns: I64
    row: I64
    reset: U8
    observed: Mask
    count: I64
    dropped: dict[DropReason, int]
    window: int

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class _Laid:
    """Columns of steps, before they are counted."""

    values: F32
    time_ns: I64
    row: I64
    reset: U8
    observed: Mask
    start: I64
    length: I64


def insert_missing_steps(filled: Filled, table: StateTable, spec: ConditioningSpec) -> Steps:
    """Insert missing steps, decide the resets, count steps since the last one."""
    rows, groups = filled.rows, filled.rows.groups()
    slots, time, reset = groups.slot, rows.time_ns, rows.reset
    before = groups.previous(time, table["applied_ns"][slots])
    pending = table["pending_reset"][slots]
    lost = pending == ResetReason.NON_FINITE_STATE
    reset[groups.start] = np.where((pending > 0) & ~lost, pending, reset[groups.start])
    missing = np.where(reset > 0, 0, missing_steps(time, before, spec.period_ns))
    gap = missing > spec.max_fill_steps
    reset[gap], missing[gap] = ResetReason.GAP, 0
    laid = _Laid(filled.values, time, rows.row, reset, filled.observed, groups.start, groups.length)
    if missing.any():
        previous = groups.previous_values(filled.values, table["applied_values"][slots])
        laid = _inserted(laid, groups, missing, before, previous, spec.period_ns)
    table["applied_values"][slots], table["applied_ns"][slots] = filled.values[groups.last], time[groups.last]
    table["pending_reset"][slots] = ResetReason.NONE
    # A lost state does not make time stand still: missing steps before the sample are made, from the initial state.
    laid.reset[laid.start[lost & (laid.reset[laid.start] == 0)]] = ResetReason.NON_FINITE_STATE
    count = count_steps(laid.reset, laid.start, laid.length, table["steps_since_reset"][slots], spec.window)
    table["steps_since_reset"][slots] = count[laid.start + laid.length - 1]
    x = laid.values
    if spec.calendar:
        x = np.concatenate((x, calendar_inputs(laid.time_ns, spec.calendar)), axis=1)
    return Steps(
        slot=slots,
        start=laid.start,
        length=laid.length,
        group=np.repeat(np.arange(slots.size), laid.length),
        x=np.ascontiguousarray(x),
        time_ns=laid.time_ns,
        row=laid.row,
        reset=laid.reset,
        observed=laid.observed,
        count=count,
        dropped=rows.dropped,
        window=spec.window,
    )


def _inserted(laid: _Laid, groups: Groups, missing: I64, before: I64, previous: F32, period_ns: int) -> _Laid:
    """Put ``missing`` steps before each row: a period apart after ``before``, with the values of ``previous``."""
    repeat = missing + 1
    own = np.repeat(np.arange(missing.size), repeat)
    ends = np.cumsum(repeat) - 1
    new = np.ones(own.size, np.bool_)
    new[ends] = False
    nth = np.arange(own.size) - (ends - missing)[own] + 1
    length = np.add.reduceat(repeat, groups.start)
    return _Laid(
        values=np.where(new[:, None], previous[own], laid.values[own]),
        time_ns=np.where(new, before[own] + nth * period_ns, laid.time_ns[own]),
        row=np.where(new, -1, laid.row[own]),
        reset=np.where(new, np.uint8(0), laid.reset[own]),
        observed=laid.observed[own] & ~new[:, None],
        start=np.cumsum(length) - length,
        length=length,
    )


def count_steps(reset: U8, start: I64, length: I64, steps_before: I64, window: int) -> I64:
    """Count steps since the last reset, (T,) int64, and mark the resets of the windowed regime in ``reset``.

    ``steps_before``: (G,) steps since the reset when the batch began.
    """
    index = np.arange(reset.size, dtype=np.int64)
    first = np.repeat(start, length)
    since = np.maximum.accumulate(np.where(reset > 0, index, -1))
    count = np.where(since >= first, index - since + 1, index - first + 1 + np.repeat(steps_before, length))
    if not window:
        return count
    reset[(reset == 0) & (count > 1) & ((count - 1) % window == 0)] = ResetReason.WINDOW
    return (count - 1) % window + 1
