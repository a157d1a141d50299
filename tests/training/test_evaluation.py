"""Scores and baselines, against numbers computed by hand."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from stream_gru.training.evaluation import scores as scores_module
from stream_gru.training.evaluation.baselines import find_season, fit_linear_ar, seasonal_forecast
from stream_gru.training.evaluation.evaluate import Baselines, evaluate
from stream_gru.training.evaluation.scores import class_scores
from tests.support.batches import batch
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated

ONE = np.ones(1, np.float32)
ZERO = np.zeros(1, np.float32)


def test_seasonal_naive_repeats_the_value_of_the_same_phase() -> None:
    """Every horizon takes the newest value that lies a whole number of seasons before the truth."""
    y = np.arange(10, dtype=np.float32)[:, None]
    table = seasonal_forecast(y, 3, 4)
    assert table[5, 0].tolist() == [3, 4, 5, 3]
    assert np.isnan(table[1, 0, 0])
    assert np.isnan(seasonal_forecast(y[:2], 9, 4)).all()


def test_the_season_of_a_sine_is_its_period() -> None:
    """The season is found in the recording, not configured."""
    y = np.sin(2 * np.pi * np.arange(2000) / 25).astype(np.float32)[:, None]
    assert find_season([y], period_s=1.0) == 25


def test_a_linear_autoregression_finds_a_linear_law() -> None:
    """Of a recording that obeys an AR(2) law without noise it leaves no error."""
    y = np.zeros(3000)
    y[:2] = 1, 0.9
    for t in range(2, 3000):
        y[t] = 1.9 * y[t - 1] - 0.95 * y[t - 2] + 0.02 * np.sin(t)
    x = y.astype(np.float32)[:, None]
    model = fit_linear_ar([x[:2000]], ZERO, ONE, [0], 3, [0])
    assert model is not None
    forecast = model.forecast(x[2000:])
    error = forecast[100:-3, 0, 0] - y[2101:-2]
    assert np.abs(error).mean() < 0.1 * np.abs(np.diff(y[2000:])).mean()


def test_the_number_of_a_category_is_no_quantity_to_the_regression() -> None:
    """A categorical channel beside the target changes nothing of the baseline, however many categories it has."""
    rng = np.random.default_rng(0)
    y = np.sin(np.arange(4000) / 7).astype(np.float32) + rng.normal(0, 0.02, 4000).astype(np.float32)
    x = np.stack([rng.integers(0, 4000, 4000).astype(np.float32), y], axis=1)
    mean, scale = np.zeros(2, np.float32), np.ones(2, np.float32)
    alone, beside = fit_linear_ar([y[:, None]], ZERO, ONE, [0], 3, [0]), fit_linear_ar([x], mean, scale, [1], 3, [1])
    assert alone is not None
    assert beside is not None
    np.testing.assert_allclose(beside.forecast(x), alone.forecast(y[:, None]), rtol=0, atol=1e-9)


def test_a_recording_too_short_for_a_regression_has_none() -> None:
    """The baseline is omitted."""
    assert fit_linear_ar([np.zeros((20, 1), np.float32)], ZERO, ONE, [0], 3, [0]) is None


def test_class_scores_are_those_of_the_table() -> None:
    """Accuracy, recall, macro F1, the commonest class and the confusion matrix, by hand."""
    truth = np.array([0, 0, 0, 1, 1, -1])
    given = np.array([0, 0, 1, 1, 1, 0])
    probabilities = np.eye(2)[given] * 0.8 + 0.1
    scores = class_scores(["a", "b"], truth, probabilities, ["s"], np.zeros(6, np.int64), majority=0)
    assert scores is not None
    assert scores.confusion == [[2, 1], [0, 2]]
    assert scores.accuracy == pytest.approx(0.8)
    assert scores.recall == pytest.approx([2 / 3, 1])
    assert scores.macro_f1 == pytest.approx((0.8 + 0.8) / 2)
    assert scores.majority_accuracy == pytest.approx(0.6)
    assert scores.expected_calibration_error == pytest.approx(0.1)


def test_many_labels_have_scores_without_a_confusion_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of a confusion matrix all other scores are still computed."""
    rng = np.random.default_rng(0)
    truth, probabilities = rng.integers(-1, 5, 300), rng.dirichlet(np.ones(6), 300)
    names, stream = [f"label {i}" for i in range(6)], np.arange(300) % 2
    whole = class_scores(names, truth, probabilities, ["s", "t"], stream, majority=0)
    monkeypatch.setattr(scores_module, "MAX_CONFUSION_LABELS", 5)
    many = class_scores(names, truth, probabilities, ["s", "t"], stream, majority=0)
    assert whole is not None
    assert many is not None
    assert (many.confusion, many.label_rows) == ([], whole.label_rows)
    assert many.label_rows == [int((truth == code).sum()) for code in range(6)]
    kept = msgspec.structs.replace(many, confusion=whole.confusion, rows=[])
    assert msgspec.json.encode(kept) == msgspec.json.encode(whole)


def test_without_truth_there_is_no_class_score() -> None:
    """Recordings without labels get only the other scores."""
    assert class_scores(["a"], np.array([-1]), np.ones((1, 1)), ["s"], np.zeros(1, np.int64), 0) is None


def test_errors_are_measured_on_the_same_pairs_for_all() -> None:
    """Persistence in the evaluation is the mean absolute change of the recording, horizon by horizon."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 3)).cumsum(axis=0).astype(np.float32)
    bundle = calibrated(make_bundle(channels=3, targets=1, horizon=2, labels=0))
    scores, _ = evaluate(bundle, batch(["a"] * 200, list(range(200)), values.tolist()), Baselines(), "numpy")
    assert scores.forecast is not None
    y = values[:, 0]
    expected = [np.abs(y[h:] - y[:-h]).mean() for h in (1, 2)]
    assert np.allclose(scores.forecast.baselines["persistence"].mae[0], expected, rtol=1e-6)
    assert scores.forecast.samples == 199


def test_the_verdict_is_plain() -> None:
    """Better, worse or no better, with the numbers, in one sentence per baseline."""
    values = np.random.default_rng(0).normal(size=(300, 3)).cumsum(axis=0)
    bundle = calibrated(make_bundle(channels=3, labels=0))
    scores, _ = evaluate(bundle, batch(["a"] * 300, list(range(300)), values.tolist()), Baselines(), "numpy")
    assert scores.verdict[0].startswith("forecast: worse than persistence by ")
    assert scores.verdict[-1].startswith("intervals: ")


def test_a_recording_too_short_for_any_truth_is_no_crash() -> None:
    """One sample gives no score and no exception."""
    bundle = calibrated(make_bundle(channels=3, labels=2))
    scores, _ = evaluate(bundle, batch(["a"], [0]), Baselines(), "numpy")
    assert scores.forecast is None
    assert scores.applied == 1
