"""Batches cut out of the segment table, and the plans that say which rows each batch takes.

`window_plan` plans the regime ``windowed``, `training_plan` the regime ``stateful``: segments in parallel lanes, cut
into chunks, the state carried from chunk to chunk.  `cut_batches` carries out either plan.

    lane 0 │ segment B ─────────────────────┊──────────────┊──────── │
    lane 1 │ B, cut ──────┊──── │ segment A ┊──────────────┊──────── │    ┊ chunk: gradients stop, the state is carried
    lane 2 │ A, cut ──────┊──────────────┊──── │ segment C ┊─── pad  │    │ reset

Segments fill one lane after another and are cut where a lane is full, so that all lanes end together.
A piece begins at the start of a chunk, from the initial state; the rest of a segment's last chunk is padding.

Sizes: N rows, C channels, I inputs, D targets, H horizon, M batches of B rows of T steps.

Source: truncated back-propagation through time, Williams and Peng 1990 (Neural Computation 2:490-501); scheduling by
wrapping around, McNaughton 1959.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.types import F32, I32, I64, Mask
from stream_gru.training.splits import SegmentTable


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


_T = TypeVar("_T", bound=np.generic)

MIN_CHUNKS = 8
"""Fewest chunks in a lane: short recordings get fewer lanes, as a lane of one chunk would carry no state."""


def training_plan(
    table: SegmentTable, lanes: int, steps: int, warm_up: int, rng: np.random.Generator | None
) -> BatchPlan:
    """Plan one epoch on at most ``lanes`` lanes, none of them idle.

    With ``rng`` the segments come in random order and each starts at a random offset below ``steps`` (and below a
    quarter of the segment), so that chunk boundaries move; without, every row is taken exactly once.
    """
    order = np.arange(len(table.start))
    offset = np.zeros(len(order), np.int64)
    count = usable_lanes(table, lanes, steps)
    if rng is not None:
        order = rng.permutation(order)
        offset = rng.integers(0, np.minimum(steps, (table.stop - table.start) // 4 + 1))
    first, valid, begins = _chunks(table.start[order] + offset[order], table.stop[order], steps)
    length = -(-len(first) // count)
    padding = (0, count * length - len(first))
    begins = np.pad(begins, padding, constant_values=True)
    begins[::length] = True
    return BatchPlan(
        first=_in_lanes(np.pad(first, padding), count),
        valid=_in_lanes(np.pad(valid, padding), count),
        age=_in_lanes(_ages(begins, steps), count),
        steps=steps,
        warm_up=warm_up,
    )


def validation_plan(table: SegmentTable, lanes: int, steps: int, warm_up: int) -> BatchPlan:
    """Plan a validation: no segment is cut; each goes to the lane that is free first, the longest segments first."""
    lengths = -(-(table.stop - table.start) // steps)
    queue = [(0, lane) for lane in range(min(lanes, len(lengths)))]
    slot = np.zeros((len(lengths), 2), np.int64)
    order = np.argsort(-lengths, kind="stable")
    for index, length in enumerate(lengths[order].tolist()):
        filled, lane = queue[0]
        slot[index] = filled, lane
        heapq.heapreplace(queue, (filled + length, lane))
    slot[order] = slot.copy()
    shape = (max(filled for filled, _ in queue), len(queue))
    first, valid, age = np.zeros(shape, np.int64), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    starts, real, begins = _chunks(table.start, table.stop, steps)
    ages = _ages(begins, steps)
    here = np.repeat(slot[:, 0], lengths) + ages // steps, np.repeat(slot[:, 1], lengths)
    first[here], valid[here], age[here] = starts, real, ages
    return BatchPlan(first, valid, age, steps, warm_up)


def usable_lanes(table: SegmentTable, lanes: int, steps: int) -> int:
    """How many lanes the rows can fill with at least `MIN_CHUNKS` chunks each; the same in every epoch."""
    chunks = int((-(-(table.stop - table.start) // steps)).sum())
    return max(1, min(lanes, chunks // MIN_CHUNKS))


def _chunks(start: I64, stop: I64, steps: int) -> tuple[I64, I32, Mask]:
    """First row and real steps of every chunk of every segment, and whether the segment begins there."""
    counts = -(-(stop - start) // steps)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.repeat(start, counts) + number * steps
    return first, np.minimum(steps, np.repeat(stop, counts) - first).astype(np.int32), number == 0


def _ages(begins: Mask, steps: int) -> I32:
    """Steps since the last reset, at each chunk."""
    position = np.arange(len(begins))
    return ((position - np.maximum.accumulate(np.where(begins, position, 0))) * steps).astype(np.int32)


def _in_lanes(column: NDArray[_T], lanes: int) -> NDArray[_T]:
    """Wrap a column of chunks over the lanes: (lanes * M,) -> (M, lanes)."""
    return np.ascontiguousarray(column.reshape(lanes, -1).T)
