"""The vectorised order equals the order decided row by row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.config import ConditioningConfig
from stream_gru.core.types import NS_PER_S, DropReason, ResetReason, SampleBatch
from stream_gru.pipeline.conditioning.ordering import order
from stream_gru.pipeline.conditioning.rows import Rows
from stream_gru.pipeline.conditioning.spec import ConditioningSpec, conditioning_columns
from stream_gru.pipeline.state_table import StateTable

CLOCK_S = 10.0
RULES = ConditioningSpec.build(ConditioningConfig(clock_backwards_s=CLOCK_S), 1.0, [(None, None, 0)], [], window=0)
Decided = list[tuple[int, int]]
"""Of each row of a batch: 1 kept, 0 duplicate, -1 late; and its reset."""


@st.composite
def batches(draw: st.DrawFn) -> SampleBatch:
    """Up to 60 rows of up to three streams: repeats, late rows, clocks set back, perhaps flags and episodes."""
    n = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    streams = draw(st.integers(1, 3))
    stream = rng.integers(0, streams, n).astype(np.int32)
    kinds = {"neat": [1], "late": [1, 1, 1, 0, -2], "wild": [1, 1, 0, 2, -1, -9, -11, -30], "still": [0, 1]}
    steps = rng.choice(kinds[draw(st.sampled_from(sorted(kinds)))], n)
    base = draw(st.sampled_from([0, 10**9 * NS_PER_S]))
    key = rng.integers(0, 3, n) if draw(st.booleans()) else np.cumsum(rng.random(n) < 0.2) - 1
    return SampleBatch(
        stream_names=tuple(f"s{i}" for i in range(streams)),
        stream_index=stream,
        time_ns=base + np.cumsum(steps) * NS_PER_S,
        values=np.zeros((n, 1), np.float32),
        reset=rng.random(n) < draw(st.sampled_from([0.05, 0.5])) if draw(st.booleans()) else None,
        episode=key.astype(np.int64) if draw(st.booleans()) else None,
    )


def walked(batch: SampleBatch, memory: dict[str, tuple[int, int]]) -> Decided:
    """Rule 1, one row after the other; ``memory``: largest event time and episode of each stream."""
    decided: Decided = []
    for row in range(len(batch)):
        stream = batch.stream_names[batch.stream_index[row]]
        newest, sequence = memory.get(stream, (-(2**62), -1))
        time = int(batch.time_ns[row])
        key = sequence if batch.episode is None else int(batch.episode[row])
        if key != sequence:
            reset = ResetReason.BOUNDARY
        elif time == newest:
            decided.append((0, 0))
            continue
        elif batch.reset is not None and batch.reset[row]:
            reset = ResetReason.FLAG
        elif time > newest:
            reset = ResetReason.NONE
        elif newest - time > CLOCK_S * NS_PER_S:
            reset = ResetReason.CLOCK_BACKWARDS
        else:
            decided.append((-1, 0))
            continue
        decided.append((1, int(reset)))
        memory[stream] = time, key
    return decided


def decided_at_once(batch: SampleBatch, table: StateTable) -> tuple[list[tuple[int, int]], dict[DropReason, int]]:
    """The result of `order` for each row (1 kept, 0 dropped; reset), and its drop counts."""
    slot = table.slots_for(batch.stream_names, 99)[batch.stream_index]
    by_slot = np.argsort(slot, kind="stable")
    rows = Rows(batch, by_slot, slot[by_slot], np.zeros(len(batch), np.uint8), {}, [])
    kept, _ = order(rows, table, RULES)
    result = [(0, 0)] * len(batch)
    for row, reset in zip(kept.row.tolist(), kept.reset.tolist(), strict=True):
        result[row] = 1, reset
    return result, kept.dropped


@settings(max_examples=400)
@given(batches(), st.lists(st.integers(0, 60), max_size=4))
def test_columns_decide_as_rows_do(batch: SampleBatch, places: list[int]) -> None:
    """Kept rows, resets, drop counts and table are those of the row-by-row rule, wherever the batch is cut."""
    table = StateTable(conditioning_columns(1))
    memory: dict[str, tuple[int, int]] = {}
    for a, b in pairwise([0, *sorted({min(p, len(batch)) for p in places}), len(batch)]):
        part = batch.take(slice(a, b))
        expected = walked(part, memory)
        decided, dropped = decided_at_once(part, table)
        assert decided == [(max(kind, 0), reset) for kind, reset in expected]
        assert dropped.get(DropReason.LATE, 0) == sum(kind < 0 for kind, _ in expected)
        assert dropped.get(DropReason.DUPLICATE, 0) == sum(kind == 0 for kind, _ in expected)
    for stream, (newest, sequence) in memory.items():
        slot = table.slot(stream)
        assert (int(table["max_event_ns"][slot]), int(table["episode"][slot])) == (newest, sequence)
