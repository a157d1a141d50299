"""Recordings as training sees them: segments without a reset, and one table of all segments.

Sizes: N rows, T steps of one segment, C channels, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stream_gru.core.errors import DataError
from stream_gru.core.types import F32, I32, I64, Mask


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of one stream without a reset: training may carry the state across them.

    ``time_ns``   (T,) int64, event time in nanoseconds since 1970-01-01 UTC
    ``x``         (T, I) float32, channels in engineering units with gaps filled, then calendar inputs
    ``observed``  (T, C) bool, False where a value was filled in: never a forecast target
    ``label``     (T,) int32 class index, -1 = none or ignored
    """

    stream: str
    time_ns: I64
    x: F32
    observed: Mask
    label: I32

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Scaling:
    """scaled = (value - mean) / scale; both (C,) float32 in engineering units, the scale never 0."""

    mean: F32
    scale: F32


def measure_scaling(
    segments: Sequence[Segment], method: Literal["standard", "minmax", "none"], numeric: Sequence[int] | None = None
) -> Scaling:
    """Measure offset and scale of each channel over its observed values; a constant channel gets the scale 1.

    ``standard``: mean and standard deviation; ``minmax``: minimum and range; ``none``: 0 and 1, as for channels that
    are not ``numeric`` (None: all are).
    Raises DataError when a channel has no observed value.
    """
    channels = segments[0].observed.shape[1]
    mean, scale = np.zeros(channels), np.ones(channels)
    measured = range(channels) if numeric is None else numeric
    x = np.concatenate([segment.x for segment in segments])
    observed = np.concatenate([segment.observed for segment in segments])
    for c in measured if method != "none" else ():
        values = x[observed[:, c], c].astype(np.float64)
        if not len(values):
            msg = f"channel {c + 1} of {channels}: no value in the training part"
            raise DataError(msg)
        standard = method == "standard"
        mean[c], scale[c] = (values.mean(), values.std()) if standard else (values.min(), np.ptp(values))
    flat = scale <= np.abs(mean) * np.finfo(np.float32).eps
    return Scaling(mean.astype(np.float32), np.where(flat, 1.0, scale).astype(np.float32))


@dataclass(frozen=True)
class SegmentTable:
    """All segments in one table, one after another.

    ``x`` (N, I), ``observed`` (N, C), ``label`` (N,) as in `Segment`; segment s is the rows ``start[s]`` up to
    ``stop[s]``; ``end`` (N,) is the stop of the segment that each row belongs to.
    """

    x: F32
    observed: Mask
    label: I32
    start: I64
    stop: I64
    end: I64

    def __len__(self) -> int:
        return len(self.x)


def join_segments(segments: Sequence[Segment]) -> SegmentTable:
    """Concatenate segments.  Raises DataError when there is no row, or when an input is not finite."""
    segments = [segment for segment in segments if len(segment)]
    if not segments:
        msg = "no samples: every segment is empty"
        raise DataError(msg)
    stop = np.cumsum([len(segment) for segment in segments], dtype=np.int64)
    lengths = np.diff(stop, prepend=0)
    x = np.concatenate([segment.x for segment in segments]).astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        index = int(np.searchsorted(stop, bad[0], side="right"))
        row = bad[0] - stop[index] + lengths[index]
        msg = f"stream {segments[index].stream!r}: input not finite at row {row} of its segment; fill gaps first"
        raise DataError(msg)
    return SegmentTable(
        x=x,
        observed=np.concatenate([segment.observed for segment in segments]),
        label=np.concatenate([segment.label for segment in segments]).astype(np.int32, copy=False),
        start=stop - lengths,
        stop=stop,
        end=np.repeat(stop, lengths),
    )
