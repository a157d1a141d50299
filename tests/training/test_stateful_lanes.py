"""Segments in lanes and windows, and the forecast truths of each batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.core.errors import DataError
from stream_gru.core.types import I64
from stream_gru.training.batches import (
    MIN_CHUNKS,
    BatchPlan,
    cut_batches,
    training_plan,
    usable_lanes,
    validation_plan,
    window_plan,
)
from stream_gru.training.splits import Segment, SegmentTable, join_segments, measure_scaling
from tests.support.trainings import forecast_truth

lengths = st.lists(st.integers(1, 90), min_size=1, max_size=9)


def segments_of(sizes: list[int]) -> list[Segment]:
    """Segments whose channel 0 counts the rows of all segments and whose channel 1 is the segment's number."""
    segments, start = [], 0
    for number, size in enumerate(sizes):
        x = np.stack([np.arange(start, start + size), np.full(size, number)], axis=1).astype(np.float32)
        time_ns = np.arange(size, dtype=np.int64)
        seen = np.random.default_rng(number).random((size, 2)) > 0.2
        segments.append(Segment(f"s{number}", time_ns, x, seen, np.zeros(size, np.int32)))
        start += size
    return segments


def covered(plan: BatchPlan) -> I64:
    """Every real step of the plan, as a row number."""
    step = np.arange(plan.steps)
    rows = plan.first[..., None] + step
    return rows[step < plan.valid[..., None]]


def check_state(plan: BatchPlan, table: SegmentTable) -> None:
    """Where the state is not reset, a chunk continues its lane's previous chunk, in the same segment."""
    for before, here in zip(range(len(plan)), range(1, len(plan)), strict=False):
        carried = plan.age[here] > 0
        assert (plan.first[here] == plan.first[before] + plan.steps)[carried].all()
        assert (plan.valid[before] == plan.steps)[carried].all()
        assert (table.end[plan.first[here]] == table.end[plan.first[before]])[carried].all()
        assert (plan.age[here] == plan.age[before] + plan.steps)[carried].all()
    assert (plan.age[0] == 0).all()


@given(lengths, st.integers(1, 6), st.integers(1, 20))
def test_training_plan_covers_each_step_once(sizes: list[int], lanes: int, steps: int) -> None:
    """Without a random offset every row is used exactly once, and no state crosses from one segment to another."""
    table = join_segments(segments_of(sizes))
    plan = training_plan(table, lanes, steps, 0, None)
    assert np.array_equal(np.sort(covered(plan)), np.arange(len(table)))
    check_state(plan, table)


@given(lengths, st.integers(1, 6), st.integers(1, 20), st.integers(0, 99))
def test_random_offsets_drop_few_rows(sizes: list[int], lanes: int, steps: int, seed: int) -> None:
    """With an offset no row comes twice, and only the first rows of a segment, fewer than a chunk, are left out."""
    table = join_segments(segments_of(sizes))
    plan = training_plan(table, lanes, steps, 0, np.random.default_rng(seed))
    seen = np.bincount(covered(plan), minlength=len(table))
    check_state(plan, table)
    assert seen.max() == 1
    for start, stop in zip(table.start, table.stop, strict=True):
        left_out = int((seen[start:stop] == 0).sum())
        assert left_out < steps
        assert seen[start + left_out : stop].all()


@given(lengths, st.integers(1, 6), st.integers(1, 20))
def test_validation_plan_cuts_nothing(sizes: list[int], lanes: int, steps: int) -> None:
    """A validation takes every row once and resets only where a segment begins."""
    table = join_segments(segments_of(sizes))
    plan = validation_plan(table, lanes, steps, 0)
    assert np.array_equal(np.sort(covered(plan)), np.arange(len(table)))
    check_state(plan, table)
    real = plan.valid > 0
    assert set(plan.first[real & (plan.age == 0)]) == set(table.start)
    assert plan.first.shape[1] == min(lanes, len(sizes))


def test_all_lanes_end_together() -> None:
    """One long segment among short ones is cut, so that no lane is idle for more than a chunk."""
    table = join_segments(segments_of([4000, 30, 70, 20]))
    plan = training_plan(table, 8, 16, 0, np.random.default_rng(0))
    idle = (plan.valid == 0).sum(axis=0)
    assert plan.first.shape[1] == 8
    assert idle.sum() < 8


def test_small_recordings_use_fewer_lanes() -> None:
    """No lane is too short to carry a state."""
    table = join_segments(segments_of([320]))
    assert usable_lanes(table, 32, 16) == 320 // 16 // MIN_CHUNKS


def test_epochs_differ_and_repeat() -> None:
    """Another epoch has other chunk boundaries, the same seed has the same."""
    table = join_segments(segments_of([900, 800]))
    one, same, other = (training_plan(table, 4, 16, 0, np.random.default_rng([1, e])) for e in (0, 0, 1))
    assert np.array_equal(one.first, same.first)
    assert not np.array_equal(one.first[0] % 16, other.first[0] % 16)


def test_warm_up_has_no_weight() -> None:
    """The first steps after a reset have weight 0, also when the warm-up is longer than a chunk."""
    table = join_segments(segments_of([40]))
    plan = validation_plan(table, 1, 8, 11)
    weights = np.concatenate([plan.weight(i)[0] for i in range(len(plan))])
    assert np.array_equal(weights, np.r_[np.zeros(11), np.ones(29)])


@given(lengths, st.integers(1, 6), st.integers(1, 9))
@settings(max_examples=50)
def test_truth_stays_inside_its_segment(sizes: list[int], horizon: int, steps: int) -> None:
    """A truth is the value h steps later in the same segment, across chunks, and never past the segment's end."""
    segments = segments_of(sizes)
    table = join_segments(segments)
    whole = [forecast_truth(segment, [1, 0], horizon) for segment in segments]
    y, mask = (np.concatenate([pair[i] for pair in whole]) for i in (0, 1))
    plan = training_plan(table, 3, steps, 0, np.random.default_rng(0))
    for number, batch in enumerate(cut_batches(table, plan, [1, 0], horizon)):
        for lane, first in enumerate(plan.first[number]):
            for t in range(plan.valid[number, lane]):
                seen = batch.seen[lane, t + 1 : t + 1 + horizon].T
                assert np.array_equal(seen, mask[first + t])
                assert np.array_equal(batch.ahead[lane, t + 1 : t + 1 + horizon].T[seen], y[first + t][seen])


def test_forecast_truth_of_a_short_segment() -> None:
    """The last H steps of a segment have fewer truths, the very last has none."""
    segment = Segment(
        "s", np.arange(3), np.arange(3, dtype=np.float32)[:, None], np.ones((3, 1), bool), np.zeros(3, np.int32)
    )
    y, mask = forecast_truth(segment, [0], 2)
    assert y.shape == mask.shape == (3, 1, 2)
    assert y[0, 0].tolist() == [1.0, 2.0]
    assert mask[:, 0].tolist() == [[True, True], [True, False], [False, False]]


@given(lengths, st.integers(1, 20), st.integers(1, 20), st.integers(1, 7))
def test_windows_lie_inside_segments(sizes: list[int], window: int, stride: int, batch_size: int) -> None:
    """Every window starts from the initial state and lies inside one segment; shuffling loses and repeats none."""
    table = join_segments(segments_of(sizes))
    plain = window_plan(table, window, stride, batch_size, "every", 0, None)
    mixed = window_plan(table, window, stride, batch_size, "every", 0, np.random.default_rng(0))
    assert sorted(plain.first[plain.valid > 0]) == sorted(mixed.first[mixed.valid > 0])
    real = mixed.valid > 0
    assert (mixed.age == 0).all()
    assert (mixed.first + mixed.valid <= table.end[mixed.first])[real].all()
    assert real.sum() == sum(1 + max(0, size - window) // stride for size in sizes)


def test_last_step_loss() -> None:
    """With the loss on the last step each window counts once, a short one at its own last step."""
    plan = window_plan(join_segments(segments_of([5, 3])), 4, 1, 8, "last", 0, None)
    assert plan.weight(0).tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]]


def test_scaling_ignores_filled_values_and_flat_channels() -> None:
    """Scaling is measured on observed values, and a constant channel is not divided by 0."""
    x = np.array([[1, 7], [3, 7], [99, 7]], np.float32)
    seen = np.array([[1, 1], [1, 1], [0, 1]], bool)
    scaling = measure_scaling([Segment("s", np.arange(3), x, seen, np.zeros(3, np.int32))], "standard")
    assert scaling.mean.tolist() == [2, 7]
    assert scaling.scale.tolist() == [1, 1]


def test_gaps_must_be_filled() -> None:
    """A missing input names its stream, rather than ending as a NaN in the loss."""
    x = np.array([[1.0], [np.nan]], np.float32)
    segment = Segment("pump-3", np.arange(2), x, np.ones((2, 1), bool), np.zeros(2, np.int32))
    with pytest.raises(DataError, match=r"pump-3.*row 1"):
        join_segments([segment])
