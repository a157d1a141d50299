"""Validates an imported row: whoever wrote it, no later sample of the stream may end the daemon.

A checksum proves that the file is unchanged, not that its values are valid.
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

_MAX_COUNT = 2.0**53  # whole numbers that JSON represents exactly
# Valid range of the columns that must be finite.
_RANGES: dict[str, tuple[float, float]] = {
    "invalid_run": (0, 2**30),
    "steps_since_reset": (0, _MAX_COUNT),
    "scored_steps": (0, _MAX_COUNT),
    "interval_scale": (1e-3, 1e6),
    "block_truths": (0, 2**30),
    "block_misses": (0, 2**30),
    "score_sums": (0, np.finfo(np.float64).max),
    "consecutive_misses": (0, 2**30),
}
_IMPUTED_FROM = ("applied_values", "last_valid")  # source of inserted steps and missing channels


def validate_columns(schema: RowSchema, columns: Mapping[str, NDArray[Any]]) -> None:
    """Raise StateError for a row that no pipeline writes.

    The hidden state may hold anything: a non-finite one is reset by the pipeline.
    """
    _require_columns(schema)
    reason = int(columns["pending_reset"])
    if reason not in frozenset(ResetReason):
        raise StateError(f"pending_reset: expected the number of a reset reason, got {reason}")
    for name, (least, most) in _RANGES.items():
        if name in columns and not ((columns[name] >= least) & (columns[name] <= most)).all():
            raise StateError(f"{name}: expected numbers from {least:g} to {most:g}, got others")
    for name in _IMPUTED_FROM:
        if np.isinf(columns[name]).any():
            raise StateError(f"{name}: expected finite numbers, or NaN for none, got infinity")
    continues = reason in (ResetReason.NONE, ResetReason.NON_FINITE_STATE)
    if continues and np.isnan(columns["applied_values"]).any():
        raise StateError("applied_values: expected numbers, as no reset is pending, got NaN")


def _require_columns(schema: RowSchema) -> None:
    """Check that the columns common to all models are there, with their types and shapes.  Raises StateError."""
    found = {name: (kind, shape) for name, kind, shape in schema.columns}
    for column in conditioning_columns(len(schema.channels)):
        expected = np.dtype(column.dtype).newbyteorder("<").str, column.shape
        if found.get(column.name) != expected:
            raise StateError(f"{column.name}: expected a column {expected}, got {found.get(column.name)}")
    kind, shape = found.get("h", ("", ()))
    if kind != "<f4" or len(shape) != 1:
        raise StateError(f"h: expected a column ('<f4', (units,)), got {(kind, shape)}")
