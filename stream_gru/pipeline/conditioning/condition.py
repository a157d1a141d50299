"""Conditioning: turn samples into steps, impute missing values and steps, decide resets.

Four rules use event time only, never the wall clock.  They apply to each sample of a stream in this order:

1. Order (`ordering`).  A sample with the largest event time so far is a DUPLICATE, an older one is LATE; both are
   dropped.  A sample older by more than ``clock_backwards_s`` shows that the device's clock was set back: it is applied
   after a reset.  A ``reset`` flag or a new episode restarts the order, because a device that restarts may restart its
   clock.
2. Values.  A value that is missing, not finite or outside the channel's range is replaced by the last
   valid one, for at most ``max_fill_steps`` samples in a row.  After that, or before any valid value, the sample is
   dropped.
3. Gaps (`gap_filling`).  Up to ``max_fill_steps`` missing steps are inserted with the last values, so that the network
   sees its sample period; a longer gap resets the stream.
4. Windows (`gap_filling`).  In the windowed regime the state is reset every W steps, as in training.

A sample dropped by rule 2 still advances the stream's largest event time: its repetition is a duplicate.

The rules are vectorised: rows are sorted by stream, then each rule is a few numpy operations on whole columns.  Only
the part of a stream between two boundaries in which samples are dropped and the clock jumps, or rows carry flags, is
processed row by row.

Decision: inserted steps repeat the last value instead of interpolating towards the sample after the gap.  One rule then
covers a missing channel and a missing sample, and no step depends on a later one.
"""

from __future__ import annotations

import numpy as np

from stream_gru.core.types import I64, DropReason, ResetReason, SampleBatch
from stream_gru.pipeline.conditioning.gap_filling import Steps, impute, insert_missing_steps
from stream_gru.pipeline.conditioning.ordering import order
from stream_gru.pipeline.conditioning.rows import Rows
from stream_gru.pipeline.conditioning.spec import ConditioningSpec
from stream_gru.pipeline.state_table import StateTable


def condition(batch: SampleBatch, table: StateTable, spec: ConditioningSpec, max_streams: int) -> Steps:
    """Turn a batch of N samples into T steps; update event times and last values in the table.

    ``table`` must have the `conditioning_columns`; ``max_streams``: samples of further streams are dropped as
    STREAM_LIMIT.  ``Steps.dropped`` includes the samples that the decoder rejected.
    """
    slot = _row_slots(batch, table, max_streams)
    by_slot = np.argsort(slot, kind="stable")
    rows = Rows(batch, by_slot, slot[by_slot], np.zeros(len(batch), np.uint8), batch.rejected_counts, [])
    over_limit = rows.slot < 0
    if over_limit.any():
        rows.drop(DropReason.STREAM_LIMIT, np.flatnonzero(over_limit))
        rows = rows.keep(~over_limit)
    rows, hold_expired = order(rows, table, spec)
    imputed = impute(rows, hold_expired, table, spec)
    steps = insert_missing_steps(imputed, table, spec)
    for stream_slot, reason in imputed.deferred_resets.items():
        _set_pending_reset(table, stream_slot, reason)
    return steps


def request_reset(table: StateTable, stream: str | None, reason: ResetReason = ResetReason.COMMAND) -> int:
    """Reset one stream, or all (None), before their next step; return how many.  Raises KeyError if unknown."""
    names = table.streams if stream is None else (stream,)
    for slot in [table.slot(name) for name in names]:
        _set_pending_reset(table, slot, reason)
    if names:
        table.mark_dirty(stream)
    return len(names)


def _set_pending_reset(table: StateTable, slot: int, reason: int) -> None:
    """Reset before the next step.  The first reason is kept, except that any reason replaces NON_FINITE_STATE."""
    pending = table["pending_reset"]
    if pending[slot] in (ResetReason.NONE, ResetReason.NON_FINITE_STATE):
        pending[slot] = reason


def _row_slots(batch: SampleBatch, table: StateTable, limit: int) -> I64:
    """Slot of each row, (N,), -1 over the limit; a stream name without rows takes no slot."""
    if len(batch.stream_names) == 1 and len(batch):
        return np.full(len(batch), table.slots_for(batch.stream_names, limit)[0])
    used = np.bincount(batch.stream_index, minlength=len(batch.stream_names)) > 0
    by_name = np.full(len(batch.stream_names), -1, np.int64)
    by_name[used] = table.slots_for([name for name, use in zip(batch.stream_names, used, strict=True) if use], limit)
    return by_name[batch.stream_index]
