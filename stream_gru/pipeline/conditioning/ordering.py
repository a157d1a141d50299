"""Rule 1, order: a sample must be newer than every sample of its stream before it."""

from __future__ import annotations

import numpy as np

from stream_gru.core.types import I64, NS_PER_S, U8, DropReason, Mask, ResetReason
from stream_gru.pipeline.conditioning.rows import Groups, Rows, missing_steps
from stream_gru.pipeline.conditioning.spec import NEVER, ConditioningSpec
from stream_gru.pipeline.state_table import StateTable


def order(rows: Rows, table: StateTable, spec: ConditioningSpec) -> tuple[Rows, Mask]:
    """Drop rows that are not newer than all before them in their stream; write resets of boundaries, flags and clocks.

    Return the kept rows, and the rows (N,) before which older values are too old to be repeated.
    """
    if not len(rows):
        return rows, np.zeros(0, np.bool_)
    groups, time, newest = rows.groups(), rows.time_ns, table["max_event_ns"]
    parts, known = _episodes(rows, groups, time, table)
    before = parts.previous(time, known)
    flag = None if rows.batch.reset is None else rows.batch.reset[rows.row]
    keep = _decide(time, before, flag, spec.clock_backwards_ns, rows.reset)
    if not keep.all():
        keep = _drop(rows, parts, known, flag, keep, spec.clock_backwards_ns)
        rows = rows.keep(keep)
        groups, time = rows.groups(), rows.time_ns
    gap = missing_steps(time, groups.previous(time, newest[groups.slot]), spec.period_ns)
    newest[groups.slot] = time[groups.last]
    return rows, (gap > spec.max_fill_steps) | (rows.reset > 0)


def _episodes(rows: Rows, groups: Groups, time: I64, table: StateTable) -> tuple[Groups, I64]:
    """Cut each stream where its episode changes; write the boundaries into ``rows.reset``.

    Return the parts and the largest event time before each.  A row with a new episode is always kept and restarts the
    order, so the episode before a row is that of the row before it, kept or dropped.
    """
    known = table["max_event_ns"][groups.slot]
    if rows.batch.episode is None:
        return groups, known
    episode = rows.batch.episode[rows.row]
    boundary = episode != groups.previous(episode, table["episode"][groups.slot])
    table["episode"][groups.slot] = episode[groups.last]
    rows.reset[boundary] = ResetReason.BOUNDARY
    cut = boundary.copy()
    cut[groups.start] = True
    parts = Groups.at(rows.slot, np.flatnonzero(cut))
    restarted = boundary[parts.start]
    newest = np.full(restarted.size, NEVER, np.int64)
    newest[~restarted] = table["max_event_ns"][parts.slot[~restarted]]
    return parts, newest


def _decide(time: I64, before: I64, flag: Mask | None, clock_backwards_ns: int, reset: U8) -> Mask:
    """Which rows are kept (N,) if ``before``, the time of the row before each, is the largest so far; write resets.

    The reset of a boundary is kept; its row is newer than `NEVER`, its ``before``.
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


def _drop(rows: Rows, parts: Groups, known: I64, flag: Mask | None, keep: Mask, clock_backwards_ns: int) -> Mask:
    """Decide the parts in which a row is dropped; count the dropped rows and return the kept ones, (N,).

    A running maximum gives the largest time so far, unless a clock was set back or a row has a flag: such a part is
    processed row by row.
    """
    has_drops = np.logical_or.reduceat(~keep, parts.start)
    inside = np.repeat(has_drops, parts.length)
    time, reset = rows.time_ns[inside], rows.reset[inside]
    part = Groups.at(rows.slot[inside], _starts(parts.length[has_drops]))
    known, flag = known[has_drops], None if flag is None else flag[inside]
    before = part.previous(_running_max(np.maximum(time, part.each(known)), part), known)
    good, late = time > before, time < before
    # A boundary, the first row of a part, is already decided.
    reset[reset != ResetReason.BOUNDARY] = 0
    jump = late & (time < before - clock_backwards_ns)
    jump = jump if flag is None else jump | flag
    for index in np.flatnonzero(np.logical_or.reduceat(jump, part.start)) if jump.any() else ():
        here = slice(int(part.start[index]), int(part.last[index]) + 1)
        flags = [False] * int(part.length[index]) if flag is None else flag[here].tolist()
        good[here], late[here] = _walk(time[here], flags, int(known[index]), clock_backwards_ns, reset[here])
    position = np.flatnonzero(inside)
    rows.drop(DropReason.LATE, position[late], value=(before - time)[late] / NS_PER_S)
    rows.drop(DropReason.DUPLICATE, position[~good & ~late])
    rows.reset[inside] = reset
    keep[inside] = good
    return keep


def _starts(length: I64) -> I64:
    return np.cumsum(length) - length


def _running_max(time: I64, groups: Groups) -> I64:
    """Running maximum within each group, (N,)."""
    count = groups.start.size
    if count == 1:
        return np.maximum.accumulate(time)
    low = time.min()
    span = int(time.max()) - int(low) + 1
    if span > (2**62) // count:  # the offsets below would overflow
        ends = zip(groups.start, groups.last, strict=True)
        return np.concatenate([np.maximum.accumulate(time[first : last + 1]) for first, last in ends])
    offset = groups.each(np.arange(count, dtype=np.int64) * span)
    return np.maximum.accumulate(time - low + offset) - offset + low


def _walk(time: I64, flags: list[bool], newest: int, clock_backwards_ns: int, reset: U8) -> tuple[Mask, Mask]:
    """Rule 1 for one part, row by row: return (keep, late) and write the resets; that of a boundary is kept."""
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
    """Reset before a sample of event time ``time``; NONE carries the state on, None drops the sample."""
    if time == newest:
        return None
    if flag:
        return ResetReason.FLAG
    if time > newest:
        return ResetReason.NONE
    return ResetReason.CLOCK_BACKWARDS if newest - time > clock_backwards_ns else None
