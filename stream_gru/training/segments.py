"""Recordings as training sees them: runs without a reset, laid end to end, and the batches cut out of them.

A `Plan` says which rows each batch takes; `training.stateful_lanes` and `training.windows` make plans, and
`batches` follows one.  Sizes: N rows, C channels, I inputs, D targets, H horizon, B lanes or windows, T steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stream_gru.core.errors import DataError
from stream_gru.core.types import F32, I32, I64, Mask


@dataclass(frozen=True)
class Run:
    """A stretch of one stream without a reset: what training may carry state over.

    ``time_ns``   (T,) int64, event time in nanoseconds since 1970-01-01 UTC
    ``x``         (T, I) float32, channels in engineering units with gaps filled in, then calendar inputs
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
    runs: Sequence[Run], method: Literal["standard", "minmax", "none"], numeric: Sequence[int] | None = None
) -> Scaling:
    """Centre and spread of each channel over its observed values; a channel that never changes gets the scale 1.

    ``standard``: mean and standard deviation; ``minmax``: minimum and range; ``none``: 0 and 1, as for channels that
    are not ``numeric`` (None: all are).
    Raises DataError when a channel was never observed.
    """
    channels = runs[0].observed.shape[1]
    mean, scale = np.zeros(channels), np.ones(channels)
    measured = range(channels) if numeric is None else numeric
    x, observed = np.concatenate([run.x for run in runs]), np.concatenate([run.observed for run in runs])
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
class Rows:
    """All runs end to end.

    ``x`` (N, I), ``observed`` (N, C), ``label`` (N,) as in `Run`; run r is the rows ``start[r]`` up to ``stop[r]``;
    ``end`` (N,) is, for each row, where its run stops.
    """

    x: F32
    observed: Mask
    label: I32
    start: I64
    stop: I64
    end: I64

    def __len__(self) -> int:
        return len(self.x)


def join_runs(runs: Sequence[Run]) -> Rows:
    """Lay runs end to end.  Raises DataError when there is no row, or an input is not finite."""
    runs = [run for run in runs if len(run)]
    if not runs:
        msg = "no samples: every run is empty"
        raise DataError(msg)
    stop = np.cumsum([len(run) for run in runs], dtype=np.int64)
    lengths = np.diff(stop, prepend=0)
    x = np.concatenate([run.x for run in runs]).astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        index = int(np.searchsorted(stop, bad[0], side="right"))
        row = bad[0] - stop[index] + lengths[index]
        msg = f"stream {runs[index].stream!r}: input not finite at row {row} of its run; gaps must be filled in"
        raise DataError(msg)
    return Rows(
        x=x,
        observed=np.concatenate([run.observed for run in runs]),
        label=np.concatenate([run.label for run in runs]).astype(np.int32, copy=False),
        start=stop - lengths,
        stop=stop,
        end=np.repeat(stop, lengths),
    )


@dataclass(frozen=True)
class Plan:
    """M batches of B rows of T = ``steps`` steps each.

    ``first``  (M, B) int64, the row of the first step
    ``valid``  (M, B) int32, how many of the steps are real (0: an idle lane); the rest is padding without weight
    ``age``    (M, B) int32, steps since the reset at the first step; 0 = the state is reset here
    ``loss``   which steps weigh: every one that is ``warm_up`` steps past the reset, or each row's last one
    """

    first: I64
    valid: I32
    age: I32
    steps: int
    warm_up: int = 0
    loss: Literal["every", "last"] = "every"

    def __len__(self) -> int:
        return len(self.first)

    def weight(self, batch: int) -> F32:
        """Loss weight of each step of a batch, (B, T), 0 or 1."""
        step = np.arange(self.steps, dtype=np.int32)
        valid = self.valid[batch][:, None]
        if self.loss == "last":
            return (step == valid - 1).astype(np.float32)
        return ((step < valid) & (self.age[batch][:, None] + step >= self.warm_up)).astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """What one training step reads.

    ``x``       (B, T, I) float32
    ``ahead``   (B, T + H, D) float32, the targets from the first step on: the truth of step t, horizon h is at t + h
    ``seen``    (B, T + H, D) bool, False beyond the end of the run and where the value was filled in
    ``label``   (B, T) int32, -1 = none
    ``weight``  (B, T) float32
    ``reset``   (B,) bool, the state is reset before the first step
    """

    x: F32
    ahead: F32
    seen: Mask
    label: I32
    weight: F32
    reset: Mask


def batches(rows: Rows, plan: Plan, target_index: Sequence[int], horizon: int) -> Iterator[Batch]:
    """Cut the planned batches out of the rows, one at a time; ``horizon`` 0 without a forecast head."""
    reach = np.arange(plan.steps + horizon)
    targets = np.asarray(target_index, np.int64)
    for number in range(len(plan)):
        first = plan.first[number][:, None]
        inside = first + reach < rows.end[first]
        index = np.minimum(first + reach, len(rows) - 1)
        here, ahead = index[:, : plan.steps], index[:, :, None]
        yield Batch(
            x=rows.x[here],
            ahead=rows.x[ahead, targets],
            seen=rows.observed[ahead, targets] & inside[:, :, None],
            label=rows.label[here],
            weight=plan.weight(number),
            reset=plan.age[number] == 0,
        )
