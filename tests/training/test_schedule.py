"""Rounds: where they end, what they hold, and that they change nothing of what is learnt."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from stream_gru.cli.train import with_options
from stream_gru.config import Config
from stream_gru.config.train_schema import ChannelConfig, ForecastConfig, LayerConfig, ModelConfig, TrainingConfig
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.progress import describe, named_round
from stream_gru.training.schedule import Course, Place
from stream_gru.training.segments import Batch, Run, join_runs, measure_scaling

SPEC = NetworkSpec.from_config(
    ModelConfig(layer=[LayerConfig()], forecast=ForecastConfig(horizon=2)), [ChannelConfig(name="count")], []
)
STATEFUL = TrainingConfig(batch_size=2, bptt_steps=4, augment_noise=0.1, augment_gain=0.1)
WINDOWED = TrainingConfig(regime="windowed", window=4, stride=3, batch_size=5, augment_noise=0.1)


def course(training: TrainingConfig, lengths: tuple[int, ...] = (30, 41, 25, 60)) -> Course:
    """A course over runs that count their rows."""
    ends = np.cumsum((0, *lengths))
    runs = [
        Run("s", np.arange(b - a), np.arange(a, b, dtype=np.float32)[:, None], np.ones((b - a, 1), bool),
            np.zeros(b - a, np.int32))
        for a, b in pairwise(ends)
    ]  # fmt: skip
    return Course(SPEC, training, join_runs(runs), measure_scaling(runs, "standard"))


def walk(course: Course) -> tuple[list[Place], list[Batch], list[float]]:
    """Follow a course to its end: the places where rounds end, all batches, all rates."""
    place = Place()
    ends: list[Place] = []
    found: list[Batch] = []
    rates: list[float] = []
    while course.finished(place) is None:
        assert 1 <= course.stretch(place) <= course.left_of_round(place)
        count = course.stretch(place)
        found += course.batches(place, count)
        rates += course.rates(place, count)
        place = course.after(place, count)
        if course.round_ends(place):
            ends.append(place)
    return ends, found, rates


@pytest.mark.parametrize("base", [STATEFUL, WINDOWED])
@given(st.integers(1, 60), st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_where_rounds_end_changes_no_batch(base: TrainingConfig, updates: int, every: int) -> None:
    """Passes follow each other until the budget is used up; rounds end at multiples, across the ends of passes."""
    cut = course(replace(base, max_updates=updates, evaluate_every=every))
    ends, found, _ = walk(cut)
    _, expected, _ = walk(course(replace(base, epochs=60)))
    assert len(found) == updates
    for one, other in zip(found, expected, strict=False):
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(one.reset, other.reset)
    if every:
        assert [end.updates for end in ends] == sorted({*range(every, updates, every), updates})
    else:
        assert all(end.batch == 0 for end in ends[:-1])
    assert cut.finished(ends[-1]) == "max_updates"


def test_epochs_end_the_last_round() -> None:
    """With epochs for a budget the last round ends with the last pass, however short it is."""
    ends, found, _ = walk(course(replace(WINDOWED, epochs=2, evaluate_every=7)))
    assert [end.updates for end in ends[:-1]] == list(range(7, len(found), 7))
    assert ends[-1] == Place(2, 0, len(found))
    assert course(WINDOWED).finished(ends[-1]) is None


def test_the_cosine_runs_over_all_updates() -> None:
    """Rates fall from the first to the last update, whatever passes and rounds there are between."""
    _, _, rates = walk(
        course(replace(STATEFUL, schedule="cosine", max_updates=50, evaluate_every=7, learning_rate=1.0))
    )
    assert np.allclose(rates, 0.5 * (1 + np.cos(np.pi * np.arange(50) / 50)))


@pytest.mark.parametrize("base", [STATEFUL, WINDOWED])
def test_without_shuffle_everything_comes_in_order(base: TrainingConfig) -> None:
    """Windows and runs are taken as they were recorded, from their first row on, and every pass is alike."""
    plain = course(replace(base, shuffle=False, augment_noise=0.0, augment_gain=0.0, epochs=2))
    _, found, _ = walk(plain)
    half = len(found) // 2
    assert all(np.array_equal(a.x, b.x) for a, b in zip(found[:half], found[half:], strict=True))
    shape = -1, base.batch_size
    starts = np.array([batch.x[:, 0, 0] for batch in found[:half]]).reshape(shape)
    weights = np.array([batch.weight.sum(axis=1) for batch in found[:half]])
    in_turn = starts.T[weights.T > 0] if base.regime == "stateful" else starts[weights > 0]
    assert (np.diff(in_turn) > 0).all()
    assert in_turn[0] == 0


def test_epochs_of_the_command_line_take_the_place_of_updates() -> None:
    """``--epochs 2`` means two passes, also where the file has a budget of updates."""
    settings = Config(training=TrainingConfig(max_updates=500, evaluate_every=10))
    changed = with_options(settings, None, 2).training
    assert (changed.epochs, changed.max_updates, changed.evaluate_every) == (2, 0, 10)
    assert with_options(settings, 5, None).training == replace(settings.training, seed=5)


def test_a_round_is_told_in_the_unit_of_the_budget() -> None:
    """Lines count what the budget counts, and name the other where rounds are not passes."""
    row = {"epoch": 1.35, "updates": 1200.0, "loss": 0.25, "seconds": 2.0}
    assert describe(row, 50_000, "update") == "update 1200/50000  epoch 1.35  loss 0.25  2.0 s"
    assert describe(row, 20, "epoch") == "epoch 1.35/20  updates 1200  loss 0.25  2.0 s"
    assert named_round(row) == "update 1200 (epoch 1.35)"
    assert named_round({"epoch": 3.0}) == "epoch 3"
