"""Conditioning: which samples become steps, what is filled in, and where a stream is reset.

Rules, by event time alone (the wall clock is never asked), in this order for each sample of a stream:

1. Order.  A sample as old as the newest one is a DUPLICATE, an older one is LATE; both are dropped.  A sample older by
   more than ``clock_backwards_s`` means the device's clock was set back: it is taken, after a reset.  A ``reset`` flag
   or a new sequence key starts the order afresh (a device that restarts may restart its clock).
2. Values.  A value that is missing, not finite or outside the channel's range is replaced by the last good one, for at
   most ``max_fill_steps`` samples in a row; beyond that, or before any good one, the sample is dropped.
3. Gaps.  Up to ``max_fill_steps`` missing steps are filled with the last values, so that the network sees its period;
   a longer gap resets the stream.
4. Windows.  In the windowed regime the state is reset every W steps, as it was in training.

A sample dropped by rule 2 has still moved the stream's order clock: its repetition is a duplicate.

Everything is computed on whole columns: rows are sorted by stream, then each rule is a few numpy operations.  Only a
stream whose clock jumps, or whose rows carry flags, is walked row by row.

Decision: inserted steps hold the last value instead of interpolating towards the sample that ends the gap, because the
same rule then serves a missing channel and a missing sample, and no step ever depends on a later one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_gru.calendar import calendar_inputs
from stream_gru.config.schema import CalendarFeature, ConditioningConfig
from stream_gru.state import Column, StateTable
from stream_gru.types import F32, I32, I64, NS_PER_S, U8, DropReason, Mask, ResetReason, SampleBatch

_NEVER = np.iinfo(np.int64).min // 2  # far from the end of int64, so that differences do not overflow


@dataclass(frozen=True, slots=True)
class ConditioningSpec:
    """What the rules need to know of a model.

    ``low, high``: (C,) float32 allowed range of each channel, -inf/inf where there is none; ``window``: W steps,
    0 in the stateful regime.
    """

    period_ns: int
    max_fill_steps: int
    clock_backwards_ns: int
    low: F32
    high: F32
    calendar: tuple[CalendarFeature, ...] = ()
    window: int = 0

    @staticmethod
    def build(
        config: ConditioningConfig,
        period_s: float,
        ranges: list[tuple[float | None, float | None]],
        calendar: list[CalendarFeature],
        window: int,
    ) -> ConditioningSpec:
        """Build from configuration: ``ranges`` are (min, max) of each channel."""
        return ConditioningSpec(
            period_ns=max(1, round(period_s * NS_PER_S)),
            max_fill_steps=config.max_fill_steps,
            clock_backwards_ns=round(config.clock_backwards_s * NS_PER_S),
            low=np.array([-np.inf if low is None else low for low, _ in ranges], np.float32),
            high=np.array([np.inf if high is None else high for _, high in ranges], np.float32),
            calendar=tuple(calendar),
            window=window,
        )


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


def conditioning_columns(channels: int) -> list[Column]:
    """Columns of the StateTable that conditioning reads and writes."""
    return [
        Column("newest_ns", (), np.int64, _NEVER),
        Column("applied_ns", (), np.int64, _NEVER),
        Column("applied_values", (channels,), np.float32, np.nan),
        Column("last_good", (channels,), np.float32, np.nan),
        Column("bad_run", (channels,), np.int32, 0),
        Column("sequence", (), np.int64, -1),
        Column("pending_reset", (), np.uint8, ResetReason.FIRST_SAMPLE),
        Column("steps", (), np.int64, 0),
    ]


def condition(batch: SampleBatch, table: StateTable, spec: ConditioningSpec, max_streams: int) -> Steps:
    """Turn a batch into steps and update the table's clocks and last values.

    ``table`` must have `conditioning_columns`.  Rejects of the batch appear among ``dropped``.
    """
    dropped = dict(batch.rejected)
    slot = _row_slots(batch, table, max_streams)
    rows = np.argsort(slot, kind="stable")
    if slot.size and slot[rows[0]] < 0:
        refused = int(np.searchsorted(slot[rows], 0))
        _count(dropped, DropReason.STREAM_LIMIT, refused)
        rows = rows[refused:]
    rows, order_reset, stale = _in_order(batch, table, slot, rows, spec, dropped)
    later: dict[int, int] = {}
    rows, order_reset, values, observed = _good_values(
        batch, table, slot, rows, order_reset, stale, spec, dropped, later
    )
    steps = _lay_out(batch, table, slot, rows, order_reset, values, observed, spec, dropped)
    for where, reason in later.items():
        _ask_reset(table, where, reason)
    return steps


def request_reset(table: StateTable, stream: str | None, reason: ResetReason = ResetReason.COMMAND) -> int:
    """Reset one stream, or all, before their next step; return how many.  Raises KeyError for an unknown stream."""
    names = table.streams if stream is None else (stream,)
    for slot in [table.slot(name) for name in names]:
        _ask_reset(table, slot, reason)
    return len(names)


def _ask_reset(table: StateTable, slot: int, reason: int) -> None:
    """Note a reset for the next step.  The first reason stands; a lost state gives way to any other."""
    pending = table["pending_reset"]
    if pending[slot] in (ResetReason.NONE, ResetReason.NON_FINITE_STATE):
        pending[slot] = reason


def _row_slots(batch: SampleBatch, table: StateTable, limit: int) -> I64:
    """Slot of each row; a stream that is only in the name table but has no row takes no slot."""
    if len(batch.streams) == 1 and len(batch):
        return np.full(len(batch), table.slots_for(batch.streams, limit)[0])
    used = np.bincount(batch.stream, minlength=len(batch.streams)) > 0
    by_name = np.full(len(batch.streams), -1, np.int64)
    by_name[used] = table.slots_for([name for name, use in zip(batch.streams, used, strict=True) if use], limit)
    return by_name[batch.stream]


def _count(dropped: dict[DropReason, int], reason: DropReason, n: int) -> None:
    if n:
        dropped[reason] = dropped.get(reason, 0) + n


def _groups(slot: I64) -> tuple[I64, I64]:
    """Start index and length of each run of equal slots in a sorted column."""
    if not slot.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if slot[0] == slot[-1]:  # sorted: all the same
        return np.zeros(1, np.int64), np.array([slot.size])
    start = np.concatenate(([0], np.flatnonzero(slot[1:] != slot[:-1]) + 1)).astype(np.int64)
    return start, np.concatenate((start[1:], [slot.size])) - start


def _previous(column: NDArray[np.int64], start: I64, first: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shift a column by one within each group; the first of a group gets ``first``."""
    if not column.size:
        return column
    shifted = np.empty_like(column)
    shifted[1:] = column[:-1]
    shifted[start] = first
    return shifted


def _in_order(
    batch: SampleBatch,
    table: StateTable,
    slot: I64,
    rows: I64,
    spec: ConditioningSpec,
    dropped: dict[DropReason, int],
) -> tuple[I64, U8, Mask]:
    """Rule 1: keep rows that are newer than all before them.

    Return them, the resets their order asks for, and where values of before are too old to be held.
    """
    if not rows.size:
        return rows, np.zeros(0, np.uint8), np.zeros(0, np.bool_)
    start, length = _groups(slot[rows])
    slots = slot[rows[start]]
    time = batch.time_ns[rows]
    newest = table["newest_ns"]
    before = _previous(
        _running_max(np.maximum(time, np.repeat(newest[slots], length)), start, length), start, newest[slots]
    )
    keep = time > before
    reset = np.zeros(rows.size, np.uint8)
    late, duplicate = time < before, time == before
    for group in _groups_to_walk(batch, rows, start, late & (time < before - spec.clock_backwards_ns)):
        part = slice(int(start[group]), int(start[group] + length[group]))
        walked = _walk(batch, rows[part], table, int(slots[group]), spec.clock_backwards_ns)
        keep[part], late[part], reset[part] = walked
        duplicate[part] = ~keep[part] & ~late[part]
    _count(dropped, DropReason.LATE, int(late.sum()))
    _count(dropped, DropReason.DUPLICATE, int(duplicate.sum()))
    rows, reset = rows[keep], reset[keep]
    start, length = _groups(slot[rows])
    slots = slot[rows[start]]
    time = batch.time_ns[rows]
    stale = _missing_steps(time, _previous(time, start, newest[slots]), spec.period_ns) > spec.max_fill_steps
    newest[slots] = time[start + length - 1]
    return rows, reset, stale | (reset > 0)


def _missing_steps(time: I64, before: I64, period_ns: int) -> I64:
    """How many periods lie empty between two times (0 when they are neighbours or closer)."""
    return np.maximum((time - before + period_ns // 2) // period_ns - 1, 0)


def _groups_to_walk(batch: SampleBatch, rows: I64, start: I64, backwards: Mask) -> list[int]:
    """Groups whose order cannot be decided by a running maximum: clock set back, flags, sequences."""
    odd = backwards if batch.reset is None else backwards | batch.reset[rows]
    if batch.sequence is not None:
        return list(range(start.size))
    return [] if not odd.any() else [int(g) for g in np.flatnonzero(np.logical_or.reduceat(odd, start))]


def _running_max(time: I64, start: I64, length: I64) -> I64:
    """Running maximum within each group."""
    if start.size == 1:
        return np.maximum.accumulate(time)
    low = time.min()
    span = int(time.max()) - int(low) + 1
    if span > (2**62) // start.size:  # lifting each group above the one before would overflow
        parts = [np.maximum.accumulate(time[s : s + n]) for s, n in zip(start, length, strict=True)]
        return np.concatenate(parts)
    lift = np.repeat(np.arange(start.size, dtype=np.int64) * span, length)
    return np.maximum.accumulate(time - low + lift) - lift + low


def _walk(
    batch: SampleBatch, rows: I64, table: StateTable, slot: int, clock_backwards_ns: int
) -> tuple[Mask, Mask, U8]:
    """Rule 1 for one stream, row by row: return (keep, late, reset reason)."""
    keep, late = np.zeros(rows.size, np.bool_), np.zeros(rows.size, np.bool_)
    reset = np.zeros(rows.size, np.uint8)
    newest, sequence = int(table["newest_ns"][slot]), int(table["sequence"][slot])
    times = batch.time_ns[rows].tolist()
    flags = [False] * rows.size if batch.reset is None else batch.reset[rows].tolist()
    keys = [sequence] * rows.size if batch.sequence is None else batch.sequence[rows].tolist()
    for index, (time, flag, key) in enumerate(zip(times, flags, keys, strict=True)):
        reason = _order_reset(time, newest, flag, key != sequence, clock_backwards_ns)
        if reason is None:
            late[index] = time < newest
            continue
        keep[index], reset[index] = True, reason
        newest, sequence = time, key
    table["sequence"][slot] = sequence
    return keep, late, reset


def _order_reset(time: int, newest: int, flag: bool, new_sequence: bool, clock_backwards_ns: int) -> ResetReason | None:
    """Say why the state must restart before a sample, NONE to carry it on, or None to drop the sample."""
    if new_sequence:
        return ResetReason.BOUNDARY
    if time == newest:
        return None
    if flag:
        return ResetReason.FLAG
    if time > newest:
        return ResetReason.NONE
    return ResetReason.CLOCK_BACKWARDS if newest - time > clock_backwards_ns else None


def _good_values(
    batch: SampleBatch,
    table: StateTable,
    slot: I64,
    rows: I64,
    reset: U8,
    stale: Mask,
    spec: ConditioningSpec,
    dropped: dict[DropReason, int],
    later: dict[int, int],
) -> tuple[I64, U8, F32, Mask]:
    """Rule 2: replace bad values by the last good ones, drop rows that have had none for too long.

    A reset that the order asked for and whose row is dropped is handed to the stream's next step; where that is not
    in this batch, it goes to ``later`` (slot -> reason).
    """
    values = batch.values[rows]
    observed = np.isfinite(values) & (values >= spec.low) & (values <= spec.high)
    start, length = _groups(slot[rows])
    slots, last = slot[rows[start]], start + length - 1
    if observed.all():
        table["last_good"][slots], table["bad_run"][slots] = values[last], 0
        return rows, reset, values, observed
    filled, run = _hold(values, observed, start, length, stale, table["last_good"][slots], table["bad_run"][slots])
    table["last_good"][slots], table["bad_run"][slots] = filled[last], np.minimum(run[last], 2**30)
    keep: Mask = np.logical_and.reduce((run <= spec.max_fill_steps) & np.isfinite(filled), axis=1)
    if not keep.all():
        finite = np.logical_and.reduce(np.isfinite(values), axis=1)
        _count(dropped, DropReason.OUT_OF_RANGE, int((~keep & finite).sum()))
        _count(dropped, DropReason.NON_FINITE, int((~keep & ~finite).sum()))
        _defer_resets(slot[rows], reset, keep, later)
    return rows[keep], reset[keep], filled[keep], observed[keep]


def _defer_resets(slot: I64, reset: U8, keep: Mask, later: dict[int, int]) -> None:
    """Hand each reset of a dropped row to the stream's next kept row; the earliest wins."""
    for index in np.flatnonzero(~keep & (reset > 0))[::-1]:
        following = np.flatnonzero(keep[index:] & (slot[index:] == slot[index]))
        if following.size:
            reset[index + following[0]] = reset[index]
        else:
            later[int(slot[index])] = int(reset[index])


def _hold(
    values: F32, observed: Mask, start: I64, length: I64, stale: Mask, last_good: F32, bad_run: I32
) -> tuple[F32, I64]:
    """Forward fill: return filled values and how many rows in a row each channel has been bad.

    Filling never reaches across a ``stale`` row; there, as before the first good value, the result is NaN.
    """
    index = np.arange(len(values), dtype=np.int64)
    fresh = stale.copy()
    fresh[start] = True
    first = np.maximum.accumulate(np.where(fresh, index, 0))[:, None]
    inherits = (first == np.repeat(start, length)[:, None]) & ~stale[first]
    good = np.maximum.accumulate(np.where(observed, index[:, None], -1), axis=0)
    known = good >= first
    before = np.where(inherits, np.repeat(last_good, length, axis=0), np.float32(np.nan))
    filled = np.where(known, np.take_along_axis(values, np.maximum(good, 0), axis=0), before)
    earlier = np.where(inherits, np.repeat(bad_run, length, axis=0), 0)
    return filled, np.where(known, index[:, None] - good, index[:, None] - first + 1 + earlier)


def _lay_out(
    batch: SampleBatch,
    table: StateTable,
    slot: I64,
    rows: I64,
    reset: U8,
    values: F32,
    observed: Mask,
    spec: ConditioningSpec,
    dropped: dict[DropReason, int],
) -> Steps:
    """Rules 3 and 4: insert missing steps, decide the resets, count steps since the last one."""
    start, length = _groups(slot[rows])
    slots, last = slot[rows[start]], start + length - 1
    time = batch.time_ns[rows]
    before = _previous(time, start, table["applied_ns"][slots])
    pending = table["pending_reset"][slots]
    lost = pending == ResetReason.NON_FINITE_STATE
    reset[start] = np.where((pending > 0) & ~lost, pending, reset[start])
    table["pending_reset"][slots], table["applied_ns"][slots] = ResetReason.NONE, time[last]
    missing = np.where(reset > 0, 0, _missing_steps(time, before, spec.period_ns))
    gap = missing > spec.max_fill_steps
    reset[gap], missing[gap] = ResetReason.GAP, 0
    previous = _previous_rows(values, start, table["applied_values"][slots])
    table["applied_values"][slots] = values[last]
    if missing.any():
        repeat = missing + 1
        own = np.repeat(np.arange(rows.size), repeat)
        inserted = np.ones(own.size, np.bool_)
        ends = np.cumsum(repeat) - 1
        inserted[ends] = False
        nth = np.arange(own.size) - (ends - missing)[own] + 1
        values = np.where(inserted[:, None], previous[own], values[own])
        time = np.where(inserted, before[own] + nth * spec.period_ns, time[own])
        rows = np.where(inserted, -1, rows[own])
        reset = np.where(inserted, np.uint8(0), reset[own])
        observed = observed[own] & ~inserted[:, None]
        length = np.add.reduceat(repeat, start)
        start = np.cumsum(length) - length
    # A lost state does not make time stand still: missing steps before the sample are made, from the initial state.
    reset[start[lost & (reset[start] == 0)]] = ResetReason.NON_FINITE_STATE
    count = count_steps(reset, start, length, table["steps"][slots], spec.window)
    table["steps"][slots] = count[start + length - 1]
    x = values
    if spec.calendar:
        x = np.concatenate((x, calendar_inputs(time, spec.calendar)), axis=1)
    return Steps(
        slot=slots, start=start, length=length, group=np.repeat(np.arange(slots.size), length),
        x=np.ascontiguousarray(x), time_ns=time, row=rows, reset=reset, observed=observed, count=count,
        dropped=dropped,
        window=spec.window,
    )  # fmt: skip


def _previous_rows(values: F32, start: I64, first: F32) -> F32:
    shifted = np.empty_like(values)
    shifted[1:] = values[:-1]
    shifted[start] = first
    return shifted


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
