"""What a row from elsewhere must hold: whoever wrote it, no sample that comes after it may end the daemon.

A checksum says that nothing was changed on the way, and not who made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.errors import StateError
from stream_gru.core.types import ResetReason
from stream_gru.pipeline.conditioning.spec import conditioning_columns
from stream_gru.pipeline.row_schema import RowSchema

_MOST = 2.0**53  # whole numbers that JSON carries
# The least and the most of columns whose numbers are finite.
_RANGES: dict[str, tuple[float, float]] = {
    "invalid_run": (0, 2**30),
    "steps_since_reset": (0, _MOST),
    "scored_steps": (0, _MOST),
    "interval_scale": (1e-3, 1e6),
    "block_truths": (0, 2**30),
    "block_misses": (0, 2**30),
    "score_sums": (0, np.finfo(np.float64).max),
    "consecutive_misses": (0, 2**30),
}
_HELD = ("applied_values", "last_valid")  # what inserted steps and missing channels are given


def require_sound(form: RowSchema, columns: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a row that no pipeline leaves behind.  Raises StateError.

    A hidden state may be anything: one that is lost is reset by itself.
    """
    _require_columns(form)
    reason = int(columns["pending_reset"])
    if reason not in frozenset(ResetReason):
        raise StateError(f"pending_reset: expected the number of a reason, got {reason}")
    for name, (least, most) in _RANGES.items():
        if name in columns and not ((columns[name] >= least) & (columns[name] <= most)).all():
            raise StateError(f"{name}: expected numbers from {least:g} to {most:g}, got others")
    for name in _HELD:
        if np.isinf(columns[name]).any():
            raise StateError(f"{name}: expected finite numbers, or NaN for none, got others")
    carried_on = reason in (ResetReason.NONE, ResetReason.NON_FINITE_STATE)
    if carried_on and np.isnan(columns["applied_values"]).any():
        raise StateError("applied_values: expected numbers, as no reset is to come, got NaN")


def _require_columns(form: RowSchema) -> None:
    """The columns that every model has, and in their form.  Raises StateError."""
    mine = {name: (kind, shape) for name, kind, shape in form.columns}
    for column in conditioning_columns(len(form.channels)):
        wanted = np.dtype(column.dtype).newbyteorder("<").str, column.shape
        if mine.get(column.name) != wanted:
            raise StateError(f"{column.name}: expected a column {wanted}, got {mine.get(column.name)}")
    kind, shape = mine.get("h", ("", ()))
    if kind != "<f4" or len(shape) != 1:
        raise StateError(f"h: expected a column ('<f4', (units,)), got {(kind, shape)}")
