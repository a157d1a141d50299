"""Several batches of samples become one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.types import I32, SampleBatch, empty_batch, merge_rejected

_T = TypeVar("_T", bound=np.generic)


def concatenate(batches: Sequence[SampleBatch], channels: int) -> SampleBatch:
    """Concatenate batches in order.  Stream and label tables are merged; a column that any batch has is kept."""
    if len(batches) == 1:
        return batches[0]
    rejected = merge_rejected(entry for batch in batches for entry in batch.rejected)
    full = [batch for batch in batches if len(batch)]
    if not full:
        return empty_batch(channels, rejected)
    streams, stream = _merge_tables([b.stream_names for b in full], [b.stream_index for b in full])
    labels, label = _merge_tables(
        [b.labels for b in full],
        [np.full(len(b), -1, np.int32) if b.label is None else b.label for b in full],
    )
    return SampleBatch(
        stream_names=streams,
        stream_index=stream,
        time_ns=np.concatenate([b.time_ns for b in full]),
        values=np.concatenate([b.values for b in full]),
        device_seq=_join([b.device_seq for b in full], full, -1, np.int64),
        label=label if any(b.label is not None for b in full) else None,
        labels=labels,
        reset=_join([b.reset for b in full], full, False, np.bool_),
        episode=_join([b.episode for b in full], full, -1, np.int64),
        arrival_ns=_join([b.arrival_ns for b in full], full, 0, np.int64),
        rejected=rejected,
    )


def _merge_tables(tables: Sequence[tuple[str, ...]], columns: Sequence[I32]) -> tuple[tuple[str, ...], I32]:
    """Return one common table and the index columns, rewritten for it; -1 stays -1."""
    index: dict[str, int] = {}
    parts = []
    for table, column in zip(tables, columns, strict=True):
        lookup = np.array([index.setdefault(name, len(index)) for name in table] + [-1], np.int32)
        parts.append(lookup[column])
    return tuple(index), np.concatenate(parts)


def _join(
    columns: Sequence[NDArray[_T] | None], batches: Sequence[SampleBatch], fill: object, dtype: type[_T]
) -> NDArray[_T] | None:
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [
            np.full(len(batch), fill, dtype) if column is None else column
            for column, batch in zip(columns, batches, strict=True)
        ]
    )
