"""Batches cut out of the segment table, and the plans that say which rows each batch takes.

`training.stateful_lanes` plans the regime ``stateful``, `window_plan` the regime ``windowed``; `cut_batches` carries
out either plan.  Sizes: N rows, C channels, I inputs, D targets, H horizon, M batches of B rows of T steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from stream_gru.core.types import F32, I32, I64, Mask
from stream_gru.training.segments import SegmentTable


@dataclass(frozen=True)
class BatchPlan:
    """M batches of B rows of T = ``steps`` steps each.

    ``first``  (M, B) int64, table row of the first step
    ``valid``  (M, B) int32, how many of the steps are real (0: an idle lane); the others are padding with weight 0
    ``age``    (M, B) int32, steps since the reset at the first step; 0 = the state is reset here
    ``loss``   which steps have weight: "every" step at least ``warm_up`` steps after the reset, or the "last" real step
    """

    first: I64
    valid: I32
    age: I32
    steps: int
    warm_up: int = 0
    loss: Literal["every", "last"] = "every"

    def __len__(self) -> int:
        return len(self.first)

    def part(self, start: int, stop: int) -> BatchPlan:
        """The plan of batches ``start`` up to ``stop``."""
        here = slice(start, stop)
        return replace(self, first=self.first[here], valid=self.valid[here], age=self.age[here])

    def weight(self, batch: int) -> F32:
        """Loss weight of each step of a batch, (B, T), 0 or 1."""
        step = np.arange(self.steps, dtype=np.int32)
        valid = self.valid[batch][:, None]
        if self.loss == "last":
            return (step == valid - 1).astype(np.float32)
        return ((step < valid) & (self.age[batch][:, None] + step >= self.warm_up)).astype(np.float32)


@dataclass(frozen=True)
class Batch:
    """Input of one training step.

    ``x``       (B, T, I) float32
    ``ahead``   (B, T + H, D) float32, the targets from the first step on: the truth of step t, horizon h is at t + h
    ``seen``    (B, T + H, D) bool, False past the end of the segment and where the value was filled in
    ``label``   (B, T) int32, -1 = none
    ``weight``  (B, T) float32
    ``reset``   (B,) bool, reset the state before the first step
    """

    x: F32
    ahead: F32
    seen: Mask
    label: I32
    weight: F32
    reset: Mask


def cut_batches(table: SegmentTable, plan: BatchPlan, target_index: Sequence[int], horizon: int) -> Iterator[Batch]:
    """Cut the planned batches out of the table, one at a time; ``horizon`` 0 without a forecast head."""
    reach = np.arange(plan.steps + horizon)
    targets = np.asarray(target_index, np.int64)
    for number in range(len(plan)):
        first = plan.first[number][:, None]
        inside = first + reach < table.end[first]
        index = np.minimum(first + reach, len(table) - 1)
        here, ahead = index[:, : plan.steps], index[:, :, None]
        yield Batch(
            x=table.x[here],
            ahead=table.x[ahead, targets],
            seen=table.observed[ahead, targets] & inside[:, :, None],
            label=table.label[here],
            weight=plan.weight(number),
            reset=plan.age[number] == 0,
        )


def window_plan(
    table: SegmentTable,
    window: int,
    stride: int,
    batch_size: int,
    loss: Literal["every", "last"],
    warm_up: int,
    rng: np.random.Generator | None,
) -> BatchPlan:
    """Plan one epoch of the regime ``windowed``: windows of fixed length, each from the initial state.

    Windows start every ``stride`` rows of a segment and end inside it; a segment shorter than ``window`` is one padded
    window.  Batches hold ``batch_size`` windows, shuffled when there is an ``rng``.  With ``loss`` "every" the first
    ``warm_up`` steps of each window have weight 0.

    Forecast truths may lie past the end of the window, but never past the end of the segment: no data leaks, as the
    training and the validation part have different segments.
    """
    count = np.maximum(table.stop - table.start - window, 0) // stride + 1
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    first = np.repeat(table.start, count) + number * stride
    if rng is not None:
        first = rng.permutation(first)
    size = min(batch_size, len(first))
    valid = np.minimum(window, table.end[first] - first).astype(np.int32)
    padding = (0, -len(first) % size)
    first, valid = np.pad(first, padding).reshape(-1, size), np.pad(valid, padding).reshape(-1, size)
    return BatchPlan(first, valid, np.zeros_like(valid), window, warm_up, loss)
