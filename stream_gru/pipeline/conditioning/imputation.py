"""Rule 2, values: replace invalid values by the last valid ones, for a limited number of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_gru.core.types import F32, I32, I64, U8, DropReason, Mask
from stream_gru.pipeline.conditioning.rows import Groups, Rows
from stream_gru.pipeline.conditioning.spec import ConditioningSpec
from stream_gru.pipeline.state_table import StateTable


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
        rows.count(DropReason.OUT_OF_RANGE, ~keep & finite)
        rows.count(DropReason.NON_FINITE, ~keep & ~finite)
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
