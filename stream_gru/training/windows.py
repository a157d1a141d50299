"""The regime `windowed`: windows of fixed length cut from the runs, each from the initial state.

A forecast may look past the end of its window, never past the end of its run: that is the future, not a leak, as
runs of the training and the validation part are different runs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from stream_gru.training.segments import Plan, Rows


def window_plan(
    rows: Rows,
    window: int,
    stride: int,
    batch_size: int,
    loss: Literal["every", "last"],
    warm_up: int,
    rng: np.random.Generator | None,
) -> Plan:
    """Plan one pass over all windows, ``batch_size`` at a time, shuffled when there is an ``rng``.

    Windows start every ``stride`` rows of a run and lie inside it; a run shorter than ``window`` is one padded window.
    ``warm_up`` steps of each window have no weight with ``loss`` "every".
    """
    count = np.maximum(rows.stop - rows.start - window, 0) // stride + 1
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    first = np.repeat(rows.start, count) + number * stride
    if rng is not None:
        first = rng.permutation(first)
    size = min(batch_size, len(first))
    valid = np.minimum(window, rows.end[first] - first).astype(np.int32)
    padding = (0, -len(first) % size)
    first, valid = np.pad(first, padding).reshape(-1, size), np.pad(valid, padding).reshape(-1, size)
    return Plan(first, valid, np.zeros_like(valid), window, warm_up, loss)
