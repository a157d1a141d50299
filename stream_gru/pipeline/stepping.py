"""Stepping: run the steps of many streams through an engine with as few calls as possible.

Many streams with few steps each advance together, one step per call (`Engine.step` on a batch); few streams with many
steps advance one stream per call (`Engine.scan`).  Both give the same numbers by contract: the choice affects speed
only.
"""

from __future__ import annotations

import numpy as np

from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32, I64, ResetReason
from stream_gru.pipeline.conditioning.gap_filling import Steps, count_steps

# From this many streams on, a batch costs less per step than a scan; measured with LiteRT, GRU(32) and GRU(64).
_MIN_BATCH = 24
# Engines unroll scans by about this many steps; a shorter scan is not faster than its steps.
_SCAN_STEPS = 32
# Larger batches exceed the processor's cache.
_MAX_ROWS = 1024


def run_steps(engine: Engine, steps: Steps, h: F32) -> tuple[F32, F32]:
    """Run T steps of G streams from the states ``h`` (G, S); return outputs (T, K) and states (G, S), all float32.

    A state that is not finite is replaced by the initial one before the next step of its stream; ``steps.reset`` and
    ``steps.count`` change accordingly.  After the last step of a stream the caller does it: see `non_finite_rows`.
    """
    outputs = np.empty((len(steps), engine.output_size), np.float32)
    if not len(steps):
        return outputs, h
    before, h = h, h.copy()
    done = np.zeros(len(steps.slot), np.int64)
    order = np.argsort(-steps.length, kind="stable")
    _batched_steps(engine, steps, order, done, h, outputs, _MIN_BATCH)
    for group in order[: _MIN_BATCH - 1]:
        left = int(steps.length[group] - done[group])
        _scan(engine, steps, int(group), int(done[group]), left - left % _SCAN_STEPS, h, outputs)
        done[group] += left - left % _SCAN_STEPS
    _batched_steps(engine, steps, order, done, h, outputs, 1)
    lost = ~np.logical_and.reduce(np.isfinite(h), axis=1)
    if not (lost.any() or not np.isfinite(outputs).all()):
        return outputs, h
    lost[steps.group[~np.isfinite(outputs).all(axis=1)]] = True
    for group in np.flatnonzero(lost):
        h[group] = _one_by_one(engine, steps, int(group), before[group], outputs)
    return outputs, h


def non_finite_rows(h: F32) -> I64:
    """Indices of the rows of ``h`` (G, S) that hold NaN or infinity."""
    return np.flatnonzero(~np.isfinite(h).all(axis=1))


def _batched_steps(engine: Engine, steps: Steps, order: I64, done: I64, h: F32, outputs: F32, least: int) -> None:
    """Run one step of all streams per round while at least ``least`` streams have one left; count it in ``done``."""
    left = (steps.length - done)[order]
    while np.count_nonzero(left > 0) >= least:
        active = order[left > 0]
        for first in range(0, active.size, _MAX_ROWS):
            part = active[first : first + _MAX_ROWS]
            index = steps.start[part] + done[part]
            state = h[part]
            state[steps.reset[index] > 0] = engine.initial_state(1)[0]
            outputs[index], h[part] = engine.step(steps.x[index], state)
        done[active] += 1
        left = (steps.length - done)[order]


def _scan(engine: Engine, steps: Steps, group: int, first: int, count: int, h: F32, outputs: F32) -> None:
    """Run ``count`` steps of one stream, one scan between two resets."""
    if not count:
        return
    begin = int(steps.start[group]) + first
    cuts = np.flatnonzero(steps.reset[begin : begin + count]) + begin
    state = h[group]
    for a, b in zip([begin, *cuts], [*cuts, begin + count], strict=True):
        if b > a:
            state = engine.initial_state(1)[0] if steps.reset[a] else state
            outputs[a:b], state = engine.scan(steps.x[a:b], state)
    h[group] = state


def _one_by_one(engine: Engine, steps: Steps, group: int, h: F32, outputs: F32) -> F32:
    """Run a stream's steps again and check the state after each; return the last state (S,), finite or not."""
    first = int(steps.start[group])
    end = first + int(steps.length[group])
    state = h[None]
    for index in range(first, end):
        if not np.isfinite(state).all():
            _mark_reset(steps, index, end)
        if steps.reset[index]:
            state = engine.initial_state(1)
        outputs[index : index + 1], state = engine.step(steps.x[index : index + 1], state)
    return state[0]


def _mark_reset(steps: Steps, index: int, end: int) -> None:
    """Write a NON_FINITE_STATE reset before step ``index`` and count the steps after it again."""
    rest = slice(index, end)
    reset = steps.reset[rest]
    if reset[0] not in (ResetReason.NONE, ResetReason.WINDOW):
        return  # already reset here
    windows = reset == ResetReason.WINDOW
    reset[windows] = ResetReason.NONE
    reset[0] = ResetReason.NON_FINITE_STATE
    start, length = np.zeros(1, np.int64), np.array([end - index])
    steps.count[rest] = count_steps(reset, start, length, np.zeros(1, np.int64), steps.window)
