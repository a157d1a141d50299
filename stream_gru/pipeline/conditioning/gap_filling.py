"""Rules 2 to 4: replace invalid values, insert missing steps, decide resets, count steps since the last reset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_gru.core.types import F32, I32, I64, U8, Dropped, DropReason, Mask, ResetReason
from stream_gru.model.calendar_features import calendar_inputs
from stream_gru.pipeline.conditioning.rows import Groups, Rows, missing_steps
from stream_gru.pipeline.conditioning.spec import ConditioningSpec
from stream_gru.pipeline.state_table import StateTable


@dataclass(frozen=True, slots=True)
class Steps:
    """Input of the engine: T steps of G streams, sorted by stream, by event time within a stream.

    ``slot``      (G,) slot in the table        ``start, length``  (G,) first step and number of steps of each stream
    ``group``     (T,) index of the stream      ``x``              (T, I) float32 channels, then calendar inputs
    ``time_ns``   (T,) event time               ``row``            (T,) row in the batch, -1 for an inserted step
    ``reset``     (T,) uint8 `ResetReason` to execute before the step
    ``observed``  (T, C) True where the value was measured, False where it was imputed
    ``count``     (T,) int64 steps since the last reset, this one included
    ``dropped``   number of samples that became no step, by reason; ``drops``: those dropped by conditioning
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
    drops: list[Dropped]
    window: int

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns of `Steps` before the steps are counted."""

    values: F32
    time_ns: I64
    row: I64
    reset: U8
    observed: Mask
    start: I64
    length: I64


def insert_missing_steps(imputed: Imputed, table: StateTable, spec: ConditioningSpec) -> Steps:
    """Insert missing steps, decide the resets, count the steps; update the table with each stream's last step."""
    rows, groups = imputed.rows, imputed.rows.groups()
    slots, time, reset = groups.slot, rows.time_ns, rows.reset
    before = groups.previous(time, table["applied_ns"][slots])
    pending = table["pending_reset"][slots]
    non_finite = pending == ResetReason.NON_FINITE_STATE
    reset[groups.start] = np.where((pending > 0) & ~non_finite, pending, reset[groups.start])
    missing = np.where(reset > 0, 0, missing_steps(time, before, spec.period_ns))
    gap = missing > spec.max_fill_steps
    reset[gap], missing[gap] = ResetReason.GAP, 0
    columns = _Columns(imputed.values, time, rows.row, reset, imputed.observed, groups.start, groups.length)
    if missing.any():
        previous = groups.previous_values(imputed.values, table["applied_values"][slots])
        columns = _inserted(columns, groups, missing, before, previous, spec.period_ns)
    table["applied_values"][slots], table["applied_ns"][slots] = imputed.values[groups.last], time[groups.last]
    table["pending_reset"][slots] = ResetReason.NONE
    # A non-finite state leaves the gap rule in force: missing steps are inserted, from the initial state.
    columns.reset[columns.start[non_finite & (columns.reset[columns.start] == 0)]] = ResetReason.NON_FINITE_STATE
    count = count_steps(columns.reset, columns.start, columns.length, table["steps_since_reset"][slots], spec.window)
    table["steps_since_reset"][slots] = count[columns.start + columns.length - 1]
    x = columns.values
    if spec.calendar:
        x = np.concatenate((x, calendar_inputs(columns.time_ns, spec.calendar)), axis=1)
    return Steps(
        slot=slots,
        start=columns.start,
        length=columns.length,
        group=np.repeat(np.arange(slots.size), columns.length),
        x=np.ascontiguousarray(x),
        time_ns=columns.time_ns,
        row=columns.row,
        reset=columns.reset,
        observed=columns.observed,
        count=count,
        dropped=rows.dropped,
        drops=rows.drops,
        window=spec.window,
    )


def _inserted(columns: _Columns, groups: Groups, missing: I64, before: I64, previous: F32, period_ns: int) -> _Columns:
    """Insert ``missing`` (N,) steps before each row: a period apart after ``before``, with the values ``previous``."""
    repeat = missing + 1
    source = np.repeat(np.arange(missing.size), repeat)  # the row that each step belongs to
    ends = np.cumsum(repeat) - 1
    new = np.ones(source.size, np.bool_)
    new[ends] = False
    nth = np.arange(source.size) - (ends - missing)[source] + 1
    length = np.add.reduceat(repeat, groups.start)
    return _Columns(
        values=np.where(new[:, None], previous[source], columns.values[source]),
        time_ns=np.where(new, before[source] + nth * period_ns, columns.time_ns[source]),
        row=np.where(new, -1, columns.row[source]),
        reset=np.where(new, np.uint8(0), columns.reset[source]),
        observed=columns.observed[source] & ~new[:, None],
        start=np.cumsum(length) - length,
        length=length,
    )


def count_steps(reset: U8, start: I64, length: I64, steps_before: I64, window: int) -> I64:
    """Count the steps since the last reset, (T,) int64; write the resets of the windowed regime into ``reset`` (T,).

    ``start, length``: (G,) steps of each stream; ``steps_before``: (G,) steps since the reset before the batch.
    """
    index = np.arange(reset.size, dtype=np.int64)
    first = np.repeat(start, length)
    since = np.maximum.accumulate(np.where(reset > 0, index, -1))
    count = np.where(since >= first, index - since + 1, index - first + 1 + np.repeat(steps_before, length))
    if not window:
        return count
    reset[(reset == 0) & (count > 1) & ((count - 1) % window == 0)] = ResetReason.WINDOW
    return (count - 1) % window + 1


@dataclass(frozen=True, slots=True)
class Imputed:
    """Rows with a finite value in every channel.

    ``values`` (N, C) float32; ``observed`` (N, C) False where the last valid value was repeated; ``deferred_resets``:
    slot -> `ResetReason` of dropped rows whose stream has no further row in this batch.
    """

    rows: Rows
    values: F32
    observed: Mask
    deferred_resets: dict[int, int]


def impute(rows: Rows, hold_expired: Mask, table: StateTable, spec: ConditioningSpec) -> Imputed:
    """Replace invalid values by the last valid ones; drop rows whose channel was invalid for too long.

    ``hold_expired``: (N,) rows before which older values are too old to be repeated.  The reset of a dropped row moves
    to the stream's next row.
    """
    deferred_resets: dict[int, int] = {}
    values = rows.batch.values[rows.row]
    observed = np.isfinite(values) & (values >= spec.low) & (values <= spec.high)
    for channel in spec.categorical:
        observed[:, channel] &= values[:, channel] == np.floor(values[:, channel])
    groups = rows.groups()
    slots, last = groups.slot, groups.last
    if observed.all():
        table["last_valid"][slots], table["invalid_run"][slots] = values[last], 0
        return Imputed(rows, values, observed, deferred_resets)
    filled, run = _hold(values, observed, groups, hold_expired, table["last_valid"][slots], table["invalid_run"][slots])
    table["last_valid"][slots], table["invalid_run"][slots] = filled[last], np.minimum(run[last], 2**30)
    keep: Mask = np.logical_and.reduce((run <= spec.max_fill_steps) & np.isfinite(filled), axis=1)
    if not keep.all():
        finite = np.logical_and.reduce(np.isfinite(values), axis=1)
        for reason, dropped in ((DropReason.OUT_OF_RANGE, ~keep & finite), (DropReason.NON_FINITE, ~keep & ~finite)):
            at = np.flatnonzero(dropped)
            channel = np.argmax((run[at] > spec.max_fill_steps) | ~np.isfinite(filled[at]), axis=1)
            rows.drop(reason, at, channel, values[at, channel])
        _defer_resets(rows.slot, rows.reset, keep, deferred_resets)
    return Imputed(rows.keep(keep), filled[keep], observed[keep], deferred_resets)


def _defer_resets(slot: I64, reset: U8, keep: Mask, deferred_resets: dict[int, int]) -> None:
    """Move each reset of a dropped row to the stream's next kept row; of several the earliest is kept."""
    dropped = np.flatnonzero(~keep & (reset > 0))[::-1]  # newest first: the earliest is written last
    kept = np.flatnonzero(keep)
    following = np.append(kept, -1)[np.searchsorted(kept, dropped)]
    found = (following >= 0) & (slot[following] == slot[dropped])
    reset[following[found]] = reset[dropped[found]]
    deferred_resets.update(zip(slot[dropped[~found]].tolist(), reset[dropped[~found]].tolist(), strict=True))


def _hold(
    values: F32, observed: Mask, groups: Groups, hold_expired: Mask, last_valid: F32, invalid_run: I32
) -> tuple[F32, I64]:
    """Forward fill: return values (N, C) and the number of invalid values in a row up to each, (N, C).

    No value is repeated across a ``hold_expired`` row; there, as before the first valid value, the result is NaN.
    """
    index = np.arange(len(values), dtype=np.int64)
    begins = hold_expired.copy()
    begins[groups.start] = True
    first = np.maximum.accumulate(np.where(begins, index, 0))[:, None]
    inherits = (first == groups.each(groups.start)[:, None]) & ~hold_expired[first]
    good = np.maximum.accumulate(np.where(observed, index[:, None], -1), axis=0)
    known = good >= first
    before = np.where(inherits, np.repeat(last_valid, groups.length, axis=0), np.float32(np.nan))
    filled = np.where(known, np.take_along_axis(values, np.maximum(good, 0), axis=0), before)
    earlier = np.where(inherits, np.repeat(invalid_run, groups.length, axis=0), 0)
    return filled, np.where(known, index[:, None] - good, index[:, None] - first + 1 + earlier)
