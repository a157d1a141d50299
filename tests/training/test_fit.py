"""Training: it learns, repeats, resumes, stops and explains errors."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import tensorflow as tf
from msgspec.structs import replace

from stream_gru.config.model_schema import ClassesConfig, ForecastConfig, LayerConfig
from stream_gru.config.train_schema import TrainingConfig
from stream_gru.core.errors import ConfigError, DataError
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.batches import Batch, cut_batches, training_plan
from stream_gru.training.fit import FitResult
from stream_gru.training.progress import PlainReporter, default_reporter
from stream_gru.training.splits import Segment, join_segments, measure_scaling
from stream_gru.training.train_step import Trainer, _tensors, class_weights
from tests.support.trainings import BOTH, QUICK, InterruptAt, forecast_truth, spec_of, train, waves, without_seconds

pytestmark = pytest.mark.train


@pytest.mark.parametrize("regime", ["stateful", "windowed"])
def test_learns_a_noisy_sine(regime: str, tmp_path: Path) -> None:
    """Both regimes forecast a noisy sine with less than a tenth of the squared error of persistence."""
    spec = spec_of(ForecastConfig(targets=["sine"], horizon=5))
    training = TrainingConfig(
        regime="stateful" if regime == "stateful" else "windowed",
        batch_size=8 if regime == "stateful" else 32,
        bptt_steps=32, window=32, stride=8, epochs=20, learning_rate=0.02, schedule="cosine",
    )  # fmt: skip
    fitted = train(spec, tmp_path, training, segments=waves(8))
    segment = waves(1, seed=77)[0]
    y, mask = forecast_truth(segment, [0], 5)
    forecast = fitted.model(segment.x[None]).numpy()[0, :, None]
    error, persistence = (np.square((guess - y)[30:][mask[30:]]).mean() for guess in (forecast, segment.x[:, :1, None]))
    assert error < 0.1 * persistence
    assert fitted.history[-1]["val_loss"] < fitted.history[0]["val_loss"]


def test_learns_classes(tmp_path: Path) -> None:
    """The class head separates rising from falling on unseen streams."""
    fitted = train(spec_of(classes=ClassesConfig()), tmp_path, replace(QUICK, epochs=10, learning_rate=0.03))
    assert fitted.history[-1]["val_accuracy"] > 0.95
    assert np.allclose(fitted.model(waves(1)[0].x[None]).numpy().sum(axis=-1), 1.0, atol=1e-5)


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory: pytest.TempPathFactory) -> FitResult:
    """Two epochs of both heads, with dropout."""
    return train(BOTH, tmp_path_factory.mktemp("two"), replace(QUICK, epochs=2))


def test_same_seed_repeats(two_epochs: FitResult, tmp_path: Path) -> None:
    """The same seed gives the same history and the same weights, dropout included; another seed does not."""
    same = train(BOTH, tmp_path / "same", replace(QUICK, epochs=2))
    other = train(BOTH, tmp_path / "other", replace(QUICK, epochs=1, seed=2))
    assert without_seconds(same) == without_seconds(two_epochs)
    assert all(np.array_equal(same.weights[name], two_epochs.weights[name]) for name in same.weights)
    assert not np.array_equal(same.weights["classes/kernel"], other.weights["classes/kernel"])


def test_resume_is_the_uninterrupted_training(two_epochs: FitResult, tmp_path: Path) -> None:
    """Interrupted inside an epoch and resumed, training ends with the weights of one without interruption."""
    training = replace(QUICK, epochs=2)
    cut = train(BOTH, tmp_path / "cut", training, InterruptAt(20))
    assert (cut.stopped, len(cut.history)) == ("interrupted", 1)
    resumed = train(BOTH, tmp_path / "cut", training, resume=True)
    assert without_seconds(resumed) == without_seconds(two_epochs)
    assert all(np.array_equal(resumed.weights[name], two_epochs.weights[name]) for name in two_epochs.weights)


def test_resume_of_another_training_is_rejected(tmp_path: Path) -> None:
    """A checkpoint of another configuration is not continued; one of more epochs is."""
    train(BOTH, tmp_path, replace(QUICK, epochs=1))
    with pytest.raises(ConfigError, match="another"):
        train(BOTH, tmp_path, replace(QUICK, bptt_steps=8), resume=True)
    assert len(train(BOTH, tmp_path, replace(QUICK, epochs=2), resume=True).history) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00002.npz", "checkpoint.json"]


def test_interrupt_keeps_the_best(two_epochs: FitResult, tmp_path: Path) -> None:
    """Ctrl-C in the third epoch returns the best weights of the first two, without the third's updates."""
    cut = train(BOTH, tmp_path, QUICK, InterruptAt(30))
    assert (cut.stopped, cut.kept) == ("interrupted", two_epochs.kept)
    assert all(np.array_equal(cut.weights[name], two_epochs.weights[name]) for name in two_epochs.weights)


def test_interrupt_before_the_first_validation_returns_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the first epoch raises KeyboardInterrupt: no weights that could replace better ones."""
    with pytest.raises(KeyboardInterrupt):
        train(BOTH, tmp_path, QUICK, InterruptAt(2))
    with pytest.raises(ConfigError, match=r"--resume: expected a checkpoint at .*checkpoint\.json, found none"):
        train(BOTH, tmp_path, QUICK, resume=True)


def test_patience_stops_and_restores_the_best(tmp_path: Path) -> None:
    """A learning rate that is too high ends training early, with the weights of the best epoch."""
    training = replace(QUICK, epochs=30, patience=2, learning_rate=0.3, clip_norm=0.0)
    fitted = train(spec_of(ForecastConfig(horizon=2)), tmp_path, training)
    losses = [row["val_loss"] for row in fitted.history]
    assert fitted.stopped == "patience"
    assert len(losses) == fitted.kept + 2
    assert fitted.kept == 1 + int(np.argmin(losses))
    again = train(spec_of(ForecastConfig(horizon=2)), tmp_path, training, resume=True)
    assert all(np.array_equal(again.weights[name], fitted.weights[name]) for name in fitted.weights)


def test_the_error_of_a_divergence_has_the_next_step(tmp_path: Path) -> None:
    """A loss that is not finite ends training with an error that names the keys to change."""
    spec = spec_of(ForecastConfig(), layer=LayerConfig(units=8, activation="linear"))
    with pytest.raises(DataError, match=r"learning_rate \(now 1e\+20\).*clip_norm"):
        train(spec, tmp_path, replace(QUICK, optimizer="sgd", learning_rate=1e20, clip_norm=0.0))


def test_nothing_to_train_on_is_an_error(tmp_path: Path) -> None:
    """Segments without labels, or shorter than the horizon, are errors that name the key to check."""
    bare = [Segment(r.stream, r.time_ns, r.x, r.observed, np.full(len(r), -1, np.int32)) for r in waves(2)]
    with pytest.raises(DataError, match="label"):
        train(spec_of(classes=ClassesConfig()), tmp_path, segments=bare)
    with pytest.raises(DataError, match=r"40 samples.*horizon \(now 64\)"):
        train(spec_of(ForecastConfig(horizon=64)), tmp_path, segments=waves(2, size=40))
    with pytest.raises(DataError, match="warm_up"):
        train(spec_of(ForecastConfig()), tmp_path, replace(QUICK, warm_up=999))


def test_gradient_stops_at_the_border_of_a_chunk() -> None:
    """The carried state is a constant: the loss of a chunk has no gradient with respect to it."""
    trainer, batch = trainer_and_batch(BOTH)
    state = tf.ones((len(batch.reset), BOTH.state_size))
    fields = [*_tensors(batch)[:5], tf.zeros(len(batch.reset), bool)]
    with tf.GradientTape() as tape:
        tape.watch(state)
        total, _ = trainer.loss(trainer._run(fields, state, training=False), fields)
    assert float(total) > 0
    assert tape.gradient(total, state) is None


def test_reset_replaces_a_state_of_nan() -> None:
    """A reset removes a NaN from the carried state of a lane, and no other lane is affected."""
    trainer, batch = trainer_and_batch(BOTH)
    poisoned = np.zeros((len(batch.reset), BOTH.state_size), np.float32)
    poisoned[1] = np.nan
    clean, healed = (
        trainer._run(_tensors(batch), tf.constant(h), training=False) for h in (0 * poisoned[:1], poisoned)
    )
    assert np.isfinite(healed["state"].numpy()).all()
    assert np.array_equal(clean["state"].numpy()[0], healed["state"].numpy()[0])


def trainer_and_batch(spec: NetworkSpec) -> tuple[Trainer, Batch]:
    """A new trainer and its first batch."""
    segments = waves(3)
    table = join_segments(segments)
    trainer = Trainer(spec, QUICK, measure_scaling(segments, "standard"), class_weights(spec, table))
    return trainer, next(cut_batches(table, training_plan(table, 4, 16, 0, None), spec.target_index, 3))


@pytest.mark.parametrize("kind", ["mse", "mae", "huber", "pinball", "sigmoid", "softmax"])
def test_losses_are_those_of_the_papers(kind: str) -> None:
    """Each loss equals its formula in numpy, computed from the network's outputs."""
    expected: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "mse": np.square,
        "mae": np.abs,
        "huber": lambda e: np.where(np.abs(e) <= 1, e**2 / 2, np.abs(e) - 0.5),
        "pinball": lambda e: np.maximum(np.array([0.1, 0.5, 0.8]) * e, (np.array([0.1, 0.5, 0.8]) - 1) * e),
    }
    if kind in expected:
        loss: Literal["mse", "mae", "huber"] = "mae" if kind == "mae" else "huber" if kind == "huber" else "mse"
        quantiles = [0.8, 0.1] if kind == "pinball" else []
        spec = spec_of(ForecastConfig(targets=["cosine", "sine"], horizon=3, loss=loss, quantiles=quantiles))
    else:
        spec = spec_of(classes=ClassesConfig(activation="sigmoid" if kind == "sigmoid" else "softmax"))
    trainer, batch = trainer_and_batch(spec)
    outputs = trainer.networks.plain(batch.x).numpy().astype(np.float64)
    total, _ = trainer.loss(trainer._run(_tensors(batch), tf.zeros((4, 8)), training=False), _tensors(batch))
    if kind in expected:
        index = np.arange(16)[:, None] + np.arange(1, 4)
        truth, seen = batch.ahead[:, index].swapaxes(2, 3), batch.seen[:, index].swapaxes(2, 3)
        scale = trainer.loss.scale.numpy()[:, None, None]
        error = (truth[..., None] - outputs.reshape(*truth.shape, -1)) / scale
        value = expected[kind](error).mean(axis=-1)[seen & (batch.weight > 0)[..., None, None]].mean()
    else:
        hot = np.eye(2)[batch.label]
        both = hot * np.log(outputs) + (1 - hot) * np.log(1 - outputs)
        entropy = -both.mean(axis=-1) if kind == "sigmoid" else -(hot * np.log(outputs)).sum(axis=-1)
        value = entropy[(batch.label >= 0) & (batch.weight > 0)].mean()
    assert float(total) == pytest.approx(value, rel=1e-4)


def test_balanced_class_weights() -> None:
    """Balanced weights are N / (L * count): unlabelled rows and absent classes count nothing."""
    label = np.array([0, 0, 0, -1], np.int32)
    segment = Segment("s", np.arange(4), np.zeros((4, 2), np.float32), np.ones((4, 2), bool), label)
    spec = spec_of(classes=ClassesConfig(class_weights="balanced"))
    assert class_weights(spec, join_segments([segment])).tolist() == [0.5, 0.0]
    segment.label[2] = 1
    assert class_weights(spec, join_segments([segment])).tolist() == pytest.approx([0.75, 1.5])


def test_quantile_head_covers(tmp_path: Path) -> None:
    """The band between the 0.1 and the 0.9 quantile holds about eight of ten truths of a stream not seen before."""
    spec = spec_of(ForecastConfig(targets=["sine"], horizon=2, quantiles=[0.1, 0.9]))
    fitted = train(spec, tmp_path, replace(QUICK, epochs=15, learning_rate=0.02, schedule="cosine"), segments=waves(6))
    segment = waves(1, size=600, seed=77)[0]
    y, mask = forecast_truth(segment, [0], 2)
    bands = fitted.model(segment.x[None]).numpy().reshape(-1, 1, 2, 3)
    inside = (bands[..., 0] <= y) & (y <= bands[..., 2])
    assert 0.65 < inside[mask].mean() < 0.93


def test_unroll_gives_the_same_training(tmp_path: Path) -> None:
    """Unrolling changes the graph but not the weights, and the model still takes any number of steps."""
    spec = spec_of(ForecastConfig(), layer=LayerConfig(units=4))
    unrolled = spec_of(ForecastConfig(), layer=LayerConfig(units=4, unroll=True))
    one, other = (train(s, tmp_path / str(i), replace(QUICK, epochs=1)) for i, s in enumerate((spec, unrolled)))
    assert np.allclose(one.weights["recurrent_0/kernel"], other.weights["recurrent_0/kernel"], atol=1e-5)
    assert other.model(np.zeros((1, 3, 2), np.float32)).shape == (1, 3, 2)


def test_tensorboard_gets_every_epoch(tmp_path: Path) -> None:
    """With a folder, each epoch writes its scalars to one file in it."""
    train(spec_of(ForecastConfig()), tmp_path / "work", replace(QUICK, epochs=2, tensorboard=str(tmp_path / "board")))
    (file,) = (tmp_path / "board").glob("events.out.tfevents.*")
    found = {
        (event.step, value.tag)
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert {(1, "val_loss"), (2, "val_loss"), (2, "seconds")} <= found


def test_plain_reporter_writes_a_line_an_epoch(tmp_path: Path) -> None:
    """Without a terminal, progress is one line per epoch with losses and seconds."""
    stream = io.StringIO()
    train(spec_of(classes=ClassesConfig()), tmp_path, replace(QUICK, epochs=2), PlainReporter(stream))
    first, second = stream.getvalue().splitlines()
    assert first.startswith("epoch 1/2  ")
    assert "val_accuracy" in second


def test_the_default_reporter_without_a_terminal_writes_lines() -> None:
    """No bars are drawn into a file."""
    assert isinstance(default_reporter(), PlainReporter)
