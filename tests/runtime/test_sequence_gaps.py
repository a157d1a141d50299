from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.core.types import SampleBatch
from stream_gru.runtime.ingest.device_counters import GapCounter
from tests.support.stateful_parts import StateStore, hostile_bytes, rejected_or_usable

MOVES = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([1, 1, 1, 2, 5, 0, -1, -3, -250, 10**6, 2**20])), max_size=40
)


def numbered_batch(rows: list[tuple[str, int]]) -> SampleBatch:
    """Rows of (stream, number)."""
    names = tuple(sorted({row[0] for row in rows}))
    return SampleBatch(
        stream_names=names,
        stream_index=np.array([names.index(row[0]) for row in rows], np.int32),
        time_ns=np.zeros(len(rows), np.int64),
        values=np.zeros((len(rows), 1), np.float32),
        device_seq=np.array([row[1] for row in rows], np.int64),
    )


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [
        ([0, 1, 2, 3], 0),
        ([7], 0),
        ([5, 6, 9, 10], 2),
        ([1, 3, 5], 2),
        ([0, 1_000_000], 999_999),
        ([0, 1_000_001, 1_000_002], 0),  # another device
        ([5, 5, 5, 6], 0),  # a repetition
        ([100, 98, 99, 100, 101], 0),  # several repetitions
        ([100, 98, 101], 0),
        ([5, 7, 6, 8], 1),  # late: it was missing when 7 came
        ([5000, 0, 1, 2], 0),  # restarted
        ([5000, 0, 3, 4], 2),
        ([254, 255, 0, 1], 0),
        ([254, 1, 2], 2),
        ([65_535, 0], 0),
        ([2**32 - 2, 3], 4),
        ([200, 0, 1], 0),  # too far from the end of eight bits to be a wraparound
        ([2**40, 0, 1], 0),
        ([1, -1, 2], 0),  # one without a number
    ],
)
def test_jumps_are_missing_samples(numbers: list[int], missing: int) -> None:
    """Jumps forward are counted; repeats, restarts and wraparounds are not."""
    assert GapCounter().observe(numbered_batch([("a", number) for number in numbers])) == missing


def test_streams_are_counted_apart_and_only_so_many() -> None:
    """Each has its own counter; beyond the bound nothing is counted; a batch without numbers changes nothing."""
    watch = GapCounter(max_streams=2)
    assert watch.observe(numbered_batch([("b", 1), ("a", 100), ("c", 5), ("b", 2), ("a", 102), ("c", 9)])) == 1
    assert watch.observe(numbered_batch([("b", 4), ("c", 99)])) == 1
    batch = numbered_batch([("a", 0)])
    assert GapCounter().observe(SampleBatch(batch.stream_names, batch.stream_index, batch.time_ns, batch.values)) == 0
    assert watch.observe(numbered_batch([])) == 0


def numbered_rows(moves: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Rows whose numbers are so much higher than the previous ones."""
    at = dict.fromkeys("abc", 250)
    rows = []
    for stream, by in moves:
        at[stream] += by
        rows.append((stream, at[stream]))
    return rows


@given(MOVES, st.lists(st.integers(0, 40), max_size=5))
def test_batching_changes_nothing(moves: list[tuple[str, int]], cuts: list[int]) -> None:
    """Row by row, at once or cut anywhere: the same count of missing samples."""
    rows = numbered_rows(moves)
    totals = []
    for ends in ([len(rows)], sorted({min(cut, len(rows)) for cut in [*cuts, len(rows)]}), range(1, len(rows) + 1)):
        watch, begin, total = GapCounter(max_streams=2), 0, 0
        for end in ends:
            total += watch.observe(numbered_batch(rows[begin:end]))
            begin = end
        totals.append(total)
    assert totals[0] == totals[1] == totals[2]


@given(MOVES, st.lists(st.integers(0, 40), max_size=5), st.lists(st.integers(0, 40), max_size=5))
def test_restarts_and_evictions_change_nothing(
    moves: list[tuple[str, int]], restarts: list[int], leaves: list[int]
) -> None:
    """All or one stream stored and restored until its next row: the same count of missing samples."""
    rows = numbered_rows(moves)
    whole = GapCounter().observe(numbered_batch(rows)) if rows else 0
    watch, stored, total = GapCounter(), StateStore(), 0
    away: set[str] = set()
    for number, row in enumerate(rows):
        if row[0] in away:
            watch.state.restore(row[0], stored.rows[row[0]])
            away.remove(row[0])
        total += watch.observe(numbered_batch([row]))
        held = {name: watch.state.snapshot(name) for name in {row[0] for row in rows} - away}
        assert {name for name in held if held[name] != stored.rows.get(name)} <= set(watch.state.dirty_keys())
        if number in restarts or number in leaves:
            stored.commit(watch.state)
        if number in leaves and row[0] in stored.rows:
            watch.state.evict(row[0])
            away.add(row[0])
        if number in restarts:
            watch = GapCounter()
            stored.fill(watch.state, number)
            away.clear()
    assert total == whole


@given(st.data())
def test_invalid_bytes_raise_only_a_state_error(data: st.DataObject) -> None:
    """Invalid bytes raise StateError or load; in both cases later rows raise nothing."""
    watch, other = GapCounter(), GapCounter()
    rows = numbered_batch([("a", number) for number in (5, 2**63 - 1, 0, 255, 3)])
    watch.observe(rows)
    genuine = watch.state.snapshot("a")
    assert genuine is not None
    rejected_or_usable(other.state, "a", data.draw(hostile_bytes(genuine)), lambda: other.observe(rows))


def test_numbers_at_the_ends_of_their_range_are_stored_as_they_are() -> None:
    """The maximum of a 64-bit counter; an unknown stream has no state."""
    watch, other = GapCounter(), GapCounter()
    watch.observe(numbered_batch([("a", 2**63 - 1), ("a", 0)]))
    data = watch.state.snapshot("a")
    assert data is not None
    other.state.restore("a", data)
    assert other.state.snapshot("a") == data
    assert other.state.snapshot("b") is None
    other.state.evict("b")
