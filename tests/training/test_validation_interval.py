"""Trainings whose validation intervals are not epochs: they resume exactly and limit how often they write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from stream_gru.config.model_schema import ClassesConfig, ForecastConfig, LayerConfig
from stream_gru.config.train_schema import TrainingConfig
from stream_gru.core.errors import DataError
from stream_gru.training.fit import SAVE_EVERY_S, TrainingRun
from stream_gru.training.progress import Row, SilentReporter
from stream_gru.training.splits import Segment, measure_scaling
from tests.support.trainings import InterruptAt, spec_of, train, waves, without_seconds

pytestmark = pytest.mark.train

SPEC = spec_of(ForecastConfig(targets=["sine"]), ClassesConfig(), LayerConfig(units=4, recurrent_dropout=0.1))
PLAIN = spec_of(classes=ClassesConfig(), layer=LayerConfig(units=4))
STATEFUL = TrainingConfig(
    batch_size=4, bptt_steps=16, learning_rate=0.01, schedule="cosine", patience=99, max_updates=40, evaluate_every=9,
    augment_noise=0.1, augment_gain=0.1,
)  # fmt: skip
WINDOWED = replace(STATEFUL, regime="windowed", window=16, batch_size=6, evaluate_every=0, augment_noise=0.05)


def training_run(
    folder: Path, training: TrainingConfig, segments: list[Segment] | None = None, clock: float = 0.0
) -> TrainingRun:
    """A small training with a stopped clock."""
    segments = waves(3) if segments is None else segments
    return TrainingRun(
        PLAIN, training, segments, waves(1, seed=9), measure_scaling(segments, "standard"), folder, lambda: clock
    )


@pytest.mark.parametrize(
    "training",
    [
        STATEFUL,
        WINDOWED,
        replace(STATEFUL, max_updates=0, epochs=3, shuffle=False),
        replace(WINDOWED, ema_momentum=0.9),
    ],
)
def test_resume_is_the_uninterrupted_training(training: TrainingConfig, tmp_path: Path) -> None:
    """Interrupted inside an interval or epoch and resumed, training ends like one without interruption."""
    whole = train(SPEC, tmp_path / "whole", training)
    cut = train(SPEC, tmp_path / "cut", training, InterruptAt(32))
    assert cut.stopped == "interrupted"
    assert 0 < len(cut.history) < len(whole.history)
    resumed = train(SPEC, tmp_path / "cut", training, resume=True)
    assert without_seconds(resumed) == without_seconds(whole)
    assert (resumed.stopped, resumed.kept) == (whole.stopped, whole.kept)
    assert all(np.array_equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)


def test_intervals_change_no_update(tmp_path: Path) -> None:
    """The state is carried across intervals and dropped at the start of an epoch: same updates, same weights."""
    epochs = training_run(tmp_path / "epochs", replace(STATEFUL, max_updates=30, evaluate_every=0))
    intervals = training_run(tmp_path / "intervals", replace(STATEFUL, max_updates=30, evaluate_every=4))
    one, other = (f.run(SilentReporter()) for f in (epochs, intervals))
    assert len(one.history) == 3
    assert [row["updates"] for row in other.history] == [4, 8, 12, 16, 20, 24, 28, 30]
    for a, b in zip(epochs.last.arrays.variables, intervals.last.arrays.variables, strict=True):
        assert np.array_equal(a, b)


def test_patience_counts_validations(tmp_path: Path) -> None:
    """Training stops after ``patience`` validations without a better loss, not after epochs."""
    training = replace(STATEFUL, evaluate_every=2, patience=3, learning_rate=0.5, clip_norm=0.0, schedule="constant")
    fitted = training_run(tmp_path, training).run(SilentReporter())
    assert fitted.stopped == "patience"
    assert len(fitted.history) == fitted.kept + 3
    assert "stopped by: patience" in fitted.summary


class Files(SilentReporter):
    """Records which checkpoint exists after each validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[str] = []

    def on_validation(self, row: Row) -> None:
        """List the folder."""
        self.seen += [path.name[-6:-4] for path in self.folder.glob("*.npz")]


@pytest.mark.parametrize(("step", "seen"), [(0.0, ["01"] * 4), (SAVE_EVERY_S, ["01", "02", "03", "04"])])
def test_a_checkpoint_is_written_when_it_is_due(step: float, seen: list[str], tmp_path: Path) -> None:
    """Short intervals write the first and the last checkpoint; long ones write each."""
    training = replace(STATEFUL, max_updates=8, evaluate_every=2)
    one, files = training_run(tmp_path, training), Files(tmp_path)
    ticks = iter(np.arange(100) * step)
    one.clock = lambda: float(next(ticks))
    one.run(files)
    assert files.seen == seen
    assert [path.name for path in tmp_path.glob("*.npz")] == ["checkpoint-00004.npz"]


def test_an_interval_without_a_label_is_valid_and_an_epoch_is_an_error(tmp_path: Path) -> None:
    """Labels may be rare: only an epoch without any is an error; an interval without any reports no loss."""
    segments = waves(1)
    segments[0].label[:200] = -1
    training = replace(STATEFUL, max_updates=6, evaluate_every=1, batch_size=1, bptt_steps=50, shuffle=False)
    fitted = training_run(tmp_path / "rare", training, segments).run(SilentReporter())
    assert ["loss" in row for row in fitted.history] == [False] * 4 + [True] * 2
    segments[0].label[:] = -1
    with pytest.raises(DataError, match="label"):
        training_run(tmp_path / "none", training, segments).run(SilentReporter())


def test_the_last_weights_are_kept_without_restore_best_weights(tmp_path: Path) -> None:
    """With ``restore_best_weights = false`` the last weights are kept though worse, and patience has no effect."""
    wild = replace(STATEFUL, learning_rate=0.5, schedule="constant", max_updates=36, patience=1)
    best = train(PLAIN, tmp_path / "best", wild)
    last = train(PLAIN, tmp_path / "last", replace(wild, restore_best_weights=False))
    assert best.stopped == "patience"
    assert (last.stopped, last.kept) == ("max_updates", len(last.history))
    assert last.history[-1]["val_loss"] > min(row["val_loss"] for row in last.history)


def test_the_average_of_the_weights_is_validated_and_kept(tmp_path: Path) -> None:
    """The momentum is 0, 2/11, 3/12 and so on up to ``ema_momentum``; updates start from the weights, not from their
    average.
    """
    plain = replace(STATEFUL, restore_best_weights=False, evaluate_every=0, schedule="constant")
    own = [train(PLAIN, tmp_path / str(n), replace(plain, max_updates=n)).weights for n in (1, 2, 3)]
    found = train(PLAIN, tmp_path / "average", replace(plain, max_updates=3, ema_momentum=0.2))
    for name, value in found.weights.items():
        expected = 2 / 11 * own[0][name] + 9 / 11 * own[1][name]
        expected = 0.2 * expected + 0.8 * own[2][name]
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
    own_loss = train(PLAIN, tmp_path / "own", replace(plain, max_updates=3)).history[-1]["val_loss"]
    assert found.history[-1]["val_loss"] != own_loss
