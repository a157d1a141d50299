"""Validation intervals: where they end, which batches they hold, and that they change no update."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from stream_gru.cli.train import with_options
from stream_gru.config import Config
from stream_gru.config.model_schema import ForecastConfig, LayerConfig, ModelConfig
from stream_gru.config.train_schema import ChannelConfig, TrainingConfig
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.batches import Batch
from stream_gru.training.progress import interval_name, progress_line
from stream_gru.training.schedule import Cursor, TrainingSchedule
from stream_gru.training.splits import Segment, join_segments, measure_scaling

SPEC = NetworkSpec.from_config(
    ModelConfig(layer=[LayerConfig()], forecast=ForecastConfig(horizon=2)), [ChannelConfig(name="count")], []
)
STATEFUL = TrainingConfig(batch_size=2, bptt_steps=4, augment_noise=0.1, augment_gain=0.1)
WINDOWED = TrainingConfig(regime="windowed", window=4, stride=3, batch_size=5, augment_noise=0.1)


def schedule_of(training: TrainingConfig, lengths: tuple[int, ...] = (30, 41, 25, 60)) -> TrainingSchedule:
    """A schedule over segments that count their rows."""
    ends = np.cumsum((0, *lengths))
    segments = [
        Segment("s", np.arange(b - a), np.arange(a, b, dtype=np.float32)[:, None], np.ones((b - a, 1), bool),
            np.zeros(b - a, np.int32))
        for a, b in pairwise(ends)
    ]  # fmt: skip
    return TrainingSchedule(SPEC, training, join_segments(segments), measure_scaling(segments, "standard"))


def run_schedule(schedule: TrainingSchedule) -> tuple[list[Cursor], list[Batch], list[float]]:
    """Follow a schedule to its end: the cursors where intervals end, all batches, all learning rates."""
    cursor = Cursor()
    ends: list[Cursor] = []
    found: list[Batch] = []
    rates: list[float] = []
    while schedule.finished(cursor) is None:
        assert 1 <= schedule.next_updates(cursor) <= schedule.updates_left_in_interval(cursor)
        count = schedule.next_updates(cursor)
        found += schedule.batches(cursor, count)
        rates += schedule.learning_rates(cursor, count)
        cursor = schedule.advance(cursor, count)
        if schedule.interval_ends(cursor):
            ends.append(cursor)
    return ends, found, rates


@pytest.mark.parametrize("base", [STATEFUL, WINDOWED])
@given(st.integers(1, 60), st.integers(0, 30))
@settings(max_examples=25)
def test_where_intervals_end_changes_no_batch(base: TrainingConfig, updates: int, every: int) -> None:
    """Epochs follow each other up to the limit; intervals end at multiples of updates, also across epochs."""
    cut = schedule_of(replace(base, max_updates=updates, evaluate_every=every))
    ends, found, _ = run_schedule(cut)
    _, expected, _ = run_schedule(schedule_of(replace(base, epochs=60)))
    assert len(found) == updates
    for one, other in zip(found, expected, strict=False):
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(one.reset, other.reset)
    if every:
        assert [end.updates for end in ends] == sorted({*range(every, updates, every), updates})
    else:
        assert all(end.batch == 0 for end in ends[:-1])
    assert cut.finished(ends[-1]) == "max_updates"


def test_epochs_end_the_last_interval() -> None:
    """With a limit of epochs the last interval ends with the last epoch, however short it is."""
    ends, found, _ = run_schedule(schedule_of(replace(WINDOWED, epochs=2, evaluate_every=7)))
    assert [end.updates for end in ends[:-1]] == list(range(7, len(found), 7))
    assert ends[-1] == Cursor(2, 0, len(found))
    assert schedule_of(WINDOWED).finished(ends[-1]) is None


def test_the_cosine_runs_over_all_updates() -> None:
    """The learning rate falls from the first to the last update, across epochs and intervals."""
    _, _, rates = run_schedule(
        schedule_of(replace(STATEFUL, schedule="cosine", max_updates=50, evaluate_every=7, learning_rate=1.0))
    )
    assert np.allclose(rates, 0.5 * (1 + np.cos(np.pi * np.arange(50) / 50)))


@pytest.mark.parametrize("base", [STATEFUL, WINDOWED])
def test_without_shuffle_everything_comes_in_order(base: TrainingConfig) -> None:
    """Windows and segments come as recorded, from their first row on, and every epoch is the same."""
    plain = schedule_of(replace(base, shuffle=False, augment_noise=0.0, augment_gain=0.0, epochs=2))
    _, found, _ = run_schedule(plain)
    half = len(found) // 2
    assert all(np.array_equal(a.x, b.x) for a, b in zip(found[:half], found[half:], strict=True))
    shape = -1, base.batch_size
    starts = np.array([batch.x[:, 0, 0] for batch in found[:half]]).reshape(shape)
    weights = np.array([batch.weight.sum(axis=1) for batch in found[:half]])
    in_turn = starts.T[weights.T > 0] if base.regime == "stateful" else starts[weights > 0]
    assert (np.diff(in_turn) > 0).all()
    assert in_turn[0] == 0


def test_epochs_of_the_command_line_take_the_place_of_updates() -> None:
    """``--epochs 2`` means two epochs, also where the file limits updates."""
    settings = Config(training=TrainingConfig(max_updates=500, evaluate_every=10))
    changed = with_options(settings, None, 2).training
    assert (changed.epochs, changed.max_updates, changed.evaluate_every) == (2, 0, 10)
    assert with_options(settings, 5, None).training == replace(settings.training, seed=5)


def test_progress_is_reported_in_the_unit_of_the_limit() -> None:
    """Lines count epochs or updates as the limit does, and name the other where intervals are not epochs."""
    row = {"epoch": 1.35, "updates": 1200.0, "loss": 0.25, "seconds": 2.0}
    assert progress_line(row, 50_000, "update") == "update 1200/50000  epoch 1.35  loss 0.25  2.0 s"
    assert progress_line(row, 20, "epoch") == "epoch 1.35/20  updates 1200  loss 0.25  2.0 s"
    assert interval_name(row) == "update 1200 (epoch 1.35)"
    assert interval_name({"epoch": 3.0}) == "epoch 3"
