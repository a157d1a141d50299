"""Rule 2, values: a bad one is replaced by the last good one, for so long and no longer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_gru.core.types import F32, I32, I64, U8, DropReason, Mask
from stream_gru.pipeline.conditioning.rows import Groups, Rows
from stream_gru.pipeline.conditioning.spec import ConditioningSpec
from stream_gru.pipeline.state_table import StateTable


@dataclass(frozen=True, slots=True)
class Filled:
    """Rows with a value in every channel.

    ``values`` (N, C) float32; ``observed`` (N, C) False where a value was held; ``later``: slot -> reason, resets of
    dropped rows whose stream has no further row here.
    """

    rows: Rows
    values: F32
    observed: Mask
    deferred_resets: dict[int, int]


def impute(rows: Rows, hold_expired: Mask, table: StateTable, spec: ConditioningSpec) -> Filled:
    """Replace bad values by the last good ones, drop rows that have had none for too long.

    A reset that the order asked for and whose row is dropped is handed to the stream's next row.
    """
    deferred_resets: dict[int, int] = {}
    values = rows.batch.values[rows.row]
    observed = np.isfinite(values) & (values >= spec.low) & (values <= spec.high)
    for channel in spec.categorical:
        observed[:, channel] &= values[:, channel] == np.floor(values[:, channel])
    groups = rows.groups()
    slots, last = groups.slot, groups.last
    if observed.all():
        table["last_good"][slots], table["invalid_run"][slots] = values[last], 0
        return Filled(rows, values, observed, deferred_resets)
    filled, run = _hold(values, observed, groups, hold_expired, table["last_good"][slots], table["invalid_run"][slots])
    table["last_good"][slots], table["invalid_run"][slots] = filled[last], np.minimum(run[last], 2**30)
    keep: Mask = np.logical_and.reduce((run <= spec.max_fill_steps) & np.isfinite(filled), axis=1)
    if not keep.all():
        finite = np.logical_and.reduce(np.isfinite(values), axis=1)
        rows.count(DropReason.OUT_OF_RANGE, ~keep & finite)
        rows.count(DropReason.NON_FINITE, ~keep & ~finite)
        _defer_resets(rows.slot, rows.reset, keep, deferred_resets)
    return Filled(rows.keep(keep), filled[keep], observed[keep], deferred_resets)


def _defer_resets(slot: I64, reset: U8, keep: Mask, deferred_resets: dict[int, int]) -> None:
    """Hand each reset of a dropped row to the stream's next kept row; the earliest wins."""
    lost = np.flatnonzero(~keep & (reset > 0))[::-1]  # of several that meet, the last one written stays
    kept = np.flatnonzero(keep)
    place = np.searchsorted(kept, lost)
    heir = np.append(kept, -1)[place]
    found = (heir >= 0) & (slot[heir] == slot[lost])
    reset[heir[found]] = reset[lost[found]]
    deferred_resets.update(zip(slot[lost[~found]].tolist(), reset[lost[~found]].tolist(), strict=True))


def _hold(
    values: F32, observed: Mask, groups: Groups, hold_expired: Mask, last_good: F32, invalid_run: I32
) -> tuple[F32, I64]:
    """Forward fill: return filled values and how many rows in a row each channel has been bad.

    Filling never reaches across a ``hold_expired`` row; there, as before the first good value, the result is NaN.
    """
    index = np.arange(len(values), dtype=np.int64)
    fresh = hold_expired.copy()
    fresh[groups.start] = True
    first = np.maximum.accumulate(np.where(fresh, index, 0))[:, None]
    inherits = (first == groups.each(groups.start)[:, None]) & ~hold_expired[first]
    good = np.maximum.accumulate(np.where(observed, index[:, None], -1), axis=0)
    known = good >= first
    before = np.where(inherits, np.repeat(last_good, groups.length, axis=0), np.float32(np.nan))
    filled = np.where(known, np.take_along_axis(values, np.maximum(good, 0), axis=0), before)
    earlier = np.where(inherits, np.repeat(invalid_run, groups.length, axis=0), 0)
    return filled, np.where(known, index[:, None] - good, index[:, None] - first + 1 + earlier)
