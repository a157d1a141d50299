"""The regime ``stateful``: segments in parallel lanes, cut into chunks, the state carried from chunk to chunk.

    lane 0 │ segment B ─────────────────────┊──────────────┊──────── │
    lane 1 │ B, cut ──────┊──── │ segment A ┊──────────────┊──────── │    ┊ chunk: gradients stop, the state is carried
    lane 2 │ A, cut ──────┊──────────────┊──── │ segment C ┊─── pad  │    │ reset

Segments fill one lane after another and are cut where a lane is full, so that all lanes end together.
A piece begins at the start of a chunk, from the initial state; the rest of a segment's last chunk is padding.

Source: truncated back-propagation through time, Williams and Peng 1990 (Neural Computation 2:490-501); scheduling by
wrapping around, McNaughton 1959.
"""

from __future__ import annotations

import heapq
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.types import I32, I64, Mask
from stream_gru.training.batches import BatchPlan
from stream_gru.training.segments import SegmentTable

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
