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
piece of a stream, between two boundaries, in which samples are dropped and the clock jumps or rows carry flags is
walked row by row.

Decision: inserted steps hold the last value instead of interpolating towards the sample that ends the gap, because the
same rule then serves a missing channel and a missing sample, and no step ever depends on a later one.
"""

from __future__ import annotations

import numpy as np

from stream_gru.core.types import I64, DropReason, ResetReason, SampleBatch
from stream_gru.pipeline.conditioning.gap_filling import Steps, insert_missing_steps
from stream_gru.pipeline.conditioning.imputation import impute
from stream_gru.pipeline.conditioning.ordering import order
from stream_gru.pipeline.conditioning.rows import Rows
from stream_gru.pipeline.conditioning.spec import ConditioningSpec
from stream_gru.pipeline.state_table import StateTable


def condition(batch: SampleBatch, table: StateTable, spec: ConditioningSpec, max_streams: int) -> Steps:
    """Turn a batch into steps and update the table's clocks and last values.

    ``table`` must have `conditioning_columns`.  Rejects of the batch appear among ``dropped``.
    """
    slot = _row_slots(batch, table, max_streams)
    by_slot = np.argsort(slot, kind="stable")
    rows = Rows(batch, by_slot, slot[by_slot], np.zeros(len(batch), np.uint8), batch.rejected_counts)
    refused = rows.slot < 0
    if refused.any():
        rows.count(DropReason.STREAM_LIMIT, refused)
        rows = rows.keep(~refused)
    rows, hold_expired = order(rows, table, spec)
    filled = impute(rows, hold_expired, table, spec)
    steps = insert_missing_steps(filled, table, spec)
    for where, reason in filled.deferred_resets.items():
        _ask_reset(table, where, reason)
    return steps


def request_reset(table: StateTable, stream: str | None, reason: ResetReason = ResetReason.COMMAND) -> int:
    """Reset one stream, or all, before their next step; return how many.  Raises KeyError for an unknown stream."""
    names = table.streams if stream is None else (stream,)
    for slot in [table.slot(name) for name in names]:
        _ask_reset(table, slot, reason)
    if names:
        table.mark_dirty(stream)
    return len(names)


def _ask_reset(table: StateTable, slot: int, reason: int) -> None:
    """Note a reset for the next step.  The first reason stands; a lost state gives way to any other."""
    pending = table["pending_reset"]
    if pending[slot] in (ResetReason.NONE, ResetReason.NON_FINITE_STATE):
        pending[slot] = reason


def _row_slots(batch: SampleBatch, table: StateTable, limit: int) -> I64:
    """Slot of each row; a stream that is only in the name table but has no row takes no slot."""
    if len(batch.stream_names) == 1 and len(batch):
        return np.full(len(batch), table.slots_for(batch.stream_names, limit)[0])
    used = np.bincount(batch.stream_index, minlength=len(batch.stream_names)) > 0
    by_name = np.full(len(batch.stream_names), -1, np.int64)
    by_name[used] = table.slots_for([name for name, use in zip(batch.stream_names, used, strict=True) if use], limit)
    return by_name[batch.stream_index]
