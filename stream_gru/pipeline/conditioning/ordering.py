"""Rule 1, order: a sample must be newer than all of its stream before it."""

from __future__ import annotations

import numpy as np

from stream_gru.core.types import I64, U8, DropReason, Mask, ResetReason
from stream_gru.pipeline.conditioning.rows import Groups, Rows, missing_steps
from stream_gru.pipeline.conditioning.spec import NEVER, ConditioningSpec
from stream_gru.pipeline.state_table import StateTable


def order(rows: Rows, table: StateTable, spec: ConditioningSpec) -> tuple[Rows, Mask]:
    """Keep rows that are newer than all before them, with the resets their order asks for.

    Return them, and where values of before are too old to be held.
    """
    if not len(rows):
        return rows, np.zeros(0, np.bool_)
    groups, time, newest = rows.groups(), rows.time_ns, table["max_event_ns"]
    pieces, known = _pieces(rows, groups, time, table)
    before = pieces.previous(time, known)
    flag = None if rows.batch.reset is None else rows.batch.reset[rows.row]
    keep = _decide(time, before, flag, spec.clock_backwards_ns, rows.reset)
    if not keep.all():
        keep = _drop(rows, pieces, known, flag, keep, spec.clock_backwards_ns)
        rows = rows.keep(keep)
        groups, time = rows.groups(), rows.time_ns
    gap = missing_steps(time, groups.previous(time, newest[groups.slot]), spec.period_ns)
    newest[groups.slot] = time[groups.last]
    return rows, (gap > spec.max_fill_steps) | (rows.reset > 0)


def _pieces(rows: Rows, groups: Groups, time: I64, table: StateTable) -> tuple[Groups, I64]:
    """Cut each stream where its sequence key changes, and mark the boundaries in ``rows.reset``.

    Return the pieces and the newest time before each.  A row with a new key is always kept and starts the order afresh,
    so the key before a row is that of the row before it, kept or not.
    """
    known = table["max_event_ns"][groups.slot]
    if rows.batch.episode is None:
        return groups, known
    key = rows.batch.episode[rows.row]
    boundary = key != groups.previous(key, table["episode"][groups.slot])
    table["episode"][groups.slot] = key[groups.last]
    rows.reset[boundary] = ResetReason.BOUNDARY
    cut = boundary.copy()
    cut[groups.start] = True
    pieces = Groups.at(rows.slot, np.flatnonzero(cut))
    fresh = boundary[pieces.start]
    newest = np.full(fresh.size, NEVER, np.int64)
    newest[~fresh] = table["max_event_ns"][pieces.slot[~fresh]]
    return pieces, newest


def _decide(time: I64, before: I64, flag: Mask | None, clock_backwards_ns: int, reset: U8) -> Mask:
    """Which rows are kept if ``before``, the row before each, is the newest of all before it; write their resets.

    A reset that stands there already, of a boundary, is kept; the row is then newer than `NEVER`, its ``before``.
    """
    keep = time > before
    if flag is not None:
        keep |= flag & (time != before)
        reset[keep & flag & (reset == 0)] = ResetReason.FLAG
    if not keep.all():
        backwards = ~keep & (time < before - clock_backwards_ns)
        keep |= backwards
        reset[backwards] = ResetReason.CLOCK_BACKWARDS
    return keep


def _drop(rows: Rows, pieces: Groups, known: I64, flag: Mask | None, keep: Mask, clock_backwards_ns: int) -> Mask:
    """Decide the pieces in which not all rows are kept; count what is dropped and return what is not.

    There a running maximum tells what is newest, unless a clock was set back or a row has a flag: these are walked.
    """
    odd = np.logical_or.reduceat(~keep, pieces.start)
    inside = np.repeat(odd, pieces.length)
    time, reset = rows.time_ns[inside], rows.reset[inside]
    part = Groups.at(rows.slot[inside], _starts(pieces.length[odd]))
    known, flag = known[odd], None if flag is None else flag[inside]
    before = part.previous(_running_max(np.maximum(time, part.each(known)), part), known)
    good, late = time > before, time < before
    # A boundary, the first row of a piece, is decided already; so is what a running maximum can decide.
    reset[reset != ResetReason.BOUNDARY] = 0
    jump = late & (time < before - clock_backwards_ns)
    jump = jump if flag is None else jump | flag
    for piece in np.flatnonzero(np.logical_or.reduceat(jump, part.start)) if jump.any() else ():
        here = slice(int(part.start[piece]), int(part.last[piece]) + 1)
        wishes = [False] * int(part.length[piece]) if flag is None else flag[here].tolist()
        good[here], late[here] = _walk(time[here], wishes, int(known[piece]), clock_backwards_ns, reset[here])
    rows.count(DropReason.LATE, late)
    rows.count(DropReason.DUPLICATE, ~good & ~late)
    rows.reset[inside] = reset
    keep[inside] = good
    return keep


def _starts(length: I64) -> I64:
    return np.cumsum(length) - length


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


def _walk(time: I64, flags: list[bool], newest: int, clock_backwards_ns: int, reset: U8) -> tuple[Mask, Mask]:
    """Rule 1 for one piece, row by row: return (keep, late) and write its resets, but for that of a boundary."""
    keep, late = np.zeros(time.size, np.bool_), np.zeros(time.size, np.bool_)
    for index, (now, flag) in enumerate(zip(time.tolist(), flags, strict=True)):
        reason = _order_reset(now, newest, flag, clock_backwards_ns)
        if reason is None:
            late[index] = now < newest
            continue
        keep[index] = True
        reset[index] = reset[index] or reason
        newest = now
    return keep, late


def _order_reset(time: int, newest: int, flag: bool, clock_backwards_ns: int) -> ResetReason | None:
    """Say why the state must restart before a sample, NONE to carry it on, or None to drop the sample."""
    if time == newest:
        return None
    if flag:
        return ResetReason.FLAG
    if time > newest:
        return ResetReason.NONE
    return ResetReason.CLOCK_BACKWARDS if newest - time > clock_backwards_ns else None
