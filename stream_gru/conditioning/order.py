"""Rule 1, order: a sample must be newer than all of its stream before it."""

from __future__ import annotations

import numpy as np

from stream_gru.conditioning.rows import Groups, Rows, missing_steps
from stream_gru.conditioning.spec import ConditioningSpec
from stream_gru.state import StateTable
from stream_gru.types import I64, U8, DropReason, Mask, ResetReason, SampleBatch


def in_order(rows: Rows, table: StateTable, spec: ConditioningSpec) -> tuple[Rows, Mask]:
    """Keep rows that are newer than all before them, with the resets their order asks for.

    Return them, and where values of before are too old to be held.
    """
    if not len(rows):
        return rows, np.zeros(0, np.bool_)
    groups, time, newest = rows.groups(), rows.time_ns, table["newest_ns"]
    known = newest[groups.slot]
    before = groups.previous(_running_max(np.maximum(time, groups.each(known)), groups), known)
    keep, late, duplicate = time > before, time < before, time == before
    for group in _to_walk(rows, groups, late & (time < before - spec.clock_backwards_ns)):
        part = slice(int(groups.start[group]), int(groups.last[group]) + 1)
        slot = int(groups.slot[group])
        keep[part], late[part], rows.reset[part] = _walk(
            rows.batch, rows.row[part], table, slot, spec.clock_backwards_ns
        )
        duplicate[part] = ~keep[part] & ~late[part]
    rows.count(DropReason.LATE, late)
    rows.count(DropReason.DUPLICATE, duplicate)
    rows = rows.keep(keep)
    groups, time = rows.groups(), rows.time_ns
    gap = missing_steps(time, groups.previous(time, newest[groups.slot]), spec.period_ns)
    newest[groups.slot] = time[groups.last]
    return rows, (gap > spec.max_fill_steps) | (rows.reset > 0)


def _to_walk(rows: Rows, groups: Groups, backwards: Mask) -> list[int]:
    """Groups whose order cannot be decided by a running maximum: clock set back, flags, sequences."""
    batch = rows.batch
    odd = backwards if batch.reset is None else backwards | batch.reset[rows.row]
    if batch.sequence is not None:
        return list(range(groups.start.size))
    return [] if not odd.any() else np.flatnonzero(np.logical_or.reduceat(odd, groups.start)).tolist()


def _running_max(time: I64, groups: Groups) -> I64:
    """Running maximum within each group."""
    count = groups.start.size
    if count == 1:
        return np.maximum.accumulate(time)
    low = time.min()
    span = int(time.max()) - int(low) + 1
    if span > (2**62) // count:  # lifting each group above the one before would overflow
        ends = zip(groups.start, groups.last, strict=True)
        return np.concatenate([np.maximum.accumulate(time[first : last + 1]) for first, last in ends])
    lift = groups.each(np.arange(count, dtype=np.int64) * span)
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
