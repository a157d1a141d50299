"""Forecasts are scored when their truth arrives; intervals adapt to their nominal coverage."""

from __future__ import annotations

import numpy as np
import pytest

from stream_gru.core.types import F32, PredictionBatch
from stream_gru.model.manifest import Calibration
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.scoring import ScoreTotals, interval_offsets
from stream_gru.training.evaluation.evaluate import Baselines, evaluate
from tests.support.batches import START_NS, batch
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated, toy_pipeline


class LastValueEngine:
    """Forecasts the last value of channel 0 for every horizon; needs no state."""

    name = "last"
    input_size, state_size = 1, 8

    def __init__(self, outputs: int) -> None:
        self.output_size = outputs

    def initial_state(self, n: int) -> F32:
        """Return zeros."""
        return np.zeros((n, 8), np.float32)

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Repeat the input."""
        return np.repeat(x, self.output_size, axis=1), h

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Repeat the inputs."""
        return np.repeat(x, self.output_size, axis=1), h


def random_walk(n: int, seed: int = 0, spread: float = 1.0) -> list[list[float]]:
    """A random walk of one channel."""
    return [[float(v)] for v in np.cumsum(np.random.default_rng(seed).normal(0, spread, n))]


def score_values(
    values: list[list[float]], rate: float = 0.5, horizon: int = 3, row: tuple[float, ...] = (-1.645, 0.0, 1.645)
) -> tuple[PredictionBatch, ScoreTotals]:
    """Feed values to a pipeline that forecasts the last value; ``row``: its residual quantiles."""
    bundle = make_bundle(channels=1, targets=1, horizon=horizon, labels=0)
    calibration = Calibration(levels=[0.05, 0.5, 0.95], residuals=[[list(row)] * horizon], samples=100)
    pipeline = Pipeline(
        bundle.with_manifest(calibration=calibration), LastValueEngine(horizon), interval_adapt_rate=rate
    )
    out = pipeline.process(batch(["a"] * len(values), list(range(len(values))), values))
    scores = pipeline.scores()
    assert scores is not None
    return out, scores


def test_errors_are_those_of_the_recording() -> None:
    """The live mean absolute error by horizon equals that of the recording."""
    values = random_walk(500)
    _, scores = score_values(values)
    y = np.array(values, np.float32)[:, 0]
    expected = [float(np.abs(y[h:] - y[:-h]).mean()) for h in (1, 2, 3)]
    assert np.allclose(scores.mae()[0], expected, rtol=1e-5)
    assert scores.truths[0].tolist() == [499, 498, 497]


def test_repeating_the_last_value_has_no_skill() -> None:
    """Persistence itself has skill 0 against persistence."""
    _, scores = score_values(random_walk(200))
    assert np.allclose(scores.skill(), 0)


def test_coverage_is_counted_against_the_interval_that_was_issued() -> None:
    """The reported coverage equals that of the intervals in the outputs, truth by truth."""
    values = random_walk(2000, spread=1.3)
    out, scores = score_values(values)
    y = np.array(values, np.float32)[:, 0]
    assert out.lower is not None
    assert out.upper is not None
    inside = [((y[h:] >= out.lower[:-h, 0, h - 1]) & (y[h:] <= out.upper[:-h, 0, h - 1])).mean() for h in (1, 2, 3)]
    assert np.allclose(scores.coverage()[0], inside, atol=1e-3)


@pytest.mark.parametrize("spread", [0.3, 1.0, 5.0])
def test_adaptive_intervals_reach_their_level_whatever_the_noise(spread: float) -> None:
    """With residuals three times smaller or five times larger than calibrated, coverage still reaches 90 %."""
    values = random_walk(8000, seed=1, spread=spread)
    out, _ = score_values(values)
    assert out.lower is not None
    assert out.upper is not None
    y = np.array(values, np.float32)[:, 0]
    late = slice(2000, -3)
    for h in (1, 2, 3):
        truth = np.roll(y, -h)[late]
        inside = (truth >= out.lower[late, 0, h - 1]) & (truth <= out.upper[late, 0, h - 1])
        assert abs(inside.mean() - 0.9) < 0.02


def test_without_adaptation_the_same_intervals_fail() -> None:
    """The counter-test of the one above: with rate 0 and five times the noise, coverage is far below its level."""
    _, scores = score_values(random_walk(4000, seed=1, spread=5.0), rate=0.0)
    assert (scores.coverage() < 0.6).all()


def test_forecasts_do_not_reach_across_a_reset() -> None:
    """A forecast from before a reset is never scored with a truth after it."""
    pipeline = toy_pipeline(calibrated(make_bundle(channels=3, labels=2)))
    pipeline.process(batch(["a"] * 4, [0, 1, 50, 51]))
    scores = pipeline.scores()
    assert scores is not None
    assert scores.truths[0].tolist() == [2, 0, 0, 0]


def test_an_imputed_truth_is_not_scored() -> None:
    """An imputed value is not counted; forecasts for later steps are still scored."""
    nan = float("nan")
    pipeline = toy_pipeline(calibrated(make_bundle(channels=3, labels=2)))
    pipeline.process(batch(["a"] * 3, [0, 1, 2], [[1, 1, 1], [nan, nan, 1], [1, 1, 1]]))
    scores = pipeline.scores()
    assert scores is not None
    assert scores.truths[0].tolist() == [1, 1, 0, 0]


def test_scores_are_kept_per_stream() -> None:
    """Each stream has its own scores; the totals are their sum."""
    pipeline = toy_pipeline(calibrated(make_bundle(channels=3, labels=2)))
    pipeline.process(batch(["a", "b"] * 5, [t for t in range(5) for _ in "ab"]))
    a, b, both = pipeline.scores("a"), pipeline.scores("b"), pipeline.scores()
    assert a is not None
    assert b is not None
    assert both is not None
    assert np.allclose(a.truths + b.truths, both.truths)
    assert np.allclose(a.absolute_error + b.absolute_error, both.absolute_error)


def test_totals_include_evicted_streams() -> None:
    """Scores stay in the totals when a stream is evicted and are not added again when it is restored, to the bit."""
    pipeline, alone = toy_pipeline(), toy_pipeline()
    rows: dict[str, bytes] = {}
    for step in range(40):
        name, times = "ab"[step % 2], [5 * step + second for second in range(5)]
        if name in rows:
            pipeline.restore_stream(name, pipeline.row_schema, rows[name])
        for one in (pipeline, alone):
            one.process(batch([name] * 5, times))
        rows[name] = pipeline.table.row(name)
        pipeline.table.evict(name)
        totals, expected = pipeline.scores(), alone.scores()
        assert totals is not None
        assert expected is not None
        for field in ("truths", "absolute_error", "persistence_error", "covered"):
            assert np.array_equal(getattr(totals, field), getattr(expected, field))
        assert step < 2 or expected.truths.any()


def test_totals_are_those_of_this_process() -> None:
    """A restored stream keeps its own scores and adds nothing to the totals of this process."""
    first, second = toy_pipeline(), toy_pipeline()
    first.process(batch(["a"] * 30, list(range(30))))
    second.restore_stream("a", first.row_schema, first.table.row("a"))
    mine, totals = second.scores("a"), second.scores()
    assert mine is not None
    assert totals is not None
    assert mine.truths.any()
    assert not totals.truths.any()


def test_totals_continue_with_other_options_and_restart_with_another_model() -> None:
    """A swap keeps the totals if the model is the same."""
    bundle = calibrated(make_bundle(channels=3))
    other = bundle.with_manifest(model_id="0" * len(bundle.manifest.model_id))
    pipeline = Pipeline(bundle, "numpy")
    pipeline.process(batch(["a"] * 30, list(range(30))))
    before = pipeline.scores()
    pipeline.swap(bundle, "numpy", interval_level=0.8)
    same = pipeline.scores()
    assert before is not None
    assert same is not None
    assert before.truths.any()
    assert np.array_equal(same.truths, before.truths)
    pipeline.process(batch(["a"] * 30, list(range(30, 60))))
    more = pipeline.scores()
    assert more is not None
    assert (more.truths > before.truths).all()
    pipeline.swap(other, "numpy")
    restarted = pipeline.scores()
    assert restarted is not None
    assert not restarted.truths.any()


def test_live_scores_equal_the_evaluation() -> None:
    """Two computations that share no code - live scoring and the evaluation - give the same error and coverage."""
    rng = np.random.default_rng(3)
    bundle = calibrated(make_bundle(channels=3, labels=2, warm_up=5))
    values = rng.normal(size=(600, 3)).cumsum(axis=0)
    values[rng.random((600, 3)) < 0.02] = np.nan
    times = np.cumsum(rng.choice([1, 1, 1, 1, 1, 3, 20], 600))
    samples = batch(["a"] * 600, times.tolist(), values.tolist())
    scores, _ = evaluate(bundle, samples, Baselines(), "numpy")
    pipeline = Pipeline(bundle, "numpy")
    pipeline.process(samples)
    live = pipeline.scores()
    assert live is not None
    assert scores.forecast is not None
    assert np.allclose(live.mae(), scores.forecast.model.mae, rtol=1e-4)
    assert np.allclose(live.coverage(), scores.forecast.coverage, atol=2e-3)


def test_interval_offsets_come_from_the_stored_quantiles() -> None:
    """A level between stored ones is interpolated; the interval always contains the forecast."""
    row = [-2.0, -1.0, 0.5, 1.0, 4.0]
    calibration = Calibration(levels=[0.05, 0.25, 0.5, 0.75, 0.95], residuals=[[row]], samples=9)
    low, high = interval_offsets(calibration, 0.7, (1, 1))
    assert low[0, 0] == pytest.approx(-1.5)
    assert high[0, 0] == pytest.approx(2.5)
    low, high = interval_offsets(calibration, 0.999, (1, 1))
    assert (low[0, 0], high[0, 0]) == (-2.0, 4.0)


def runs_of(out: PredictionBatch) -> list[int]:
    """The runs of misses, which every output of a calibrated model has."""
    assert out.consecutive_misses is not None
    return out.consecutive_misses.tolist()


def test_a_run_of_misses_is_counted_from_the_outputs_alone() -> None:
    """Each output counts the consecutive truths, its own included, outside the interval issued one step before."""
    values = random_walk(3000, seed=5, spread=1.5)
    out, _ = score_values(values)
    assert out.lower is not None
    assert out.upper is not None
    y, expected = np.array(values, np.float32)[:, 0], [0]
    for t in range(1, len(y)):
        inside = out.lower[t - 1, 0, 0] <= y[t] <= out.upper[t - 1, 0, 0]
        expected.append(0 if inside else expected[-1] + 1)
    assert runs_of(out) == expected
    assert max(expected) > 1


def test_a_missing_truth_leaves_a_run_and_a_reset_ends_it() -> None:
    """Imputed values are no truths; after a reset no interval has been issued."""
    bundle = calibrated(make_bundle(channels=1, targets=1, horizon=1, labels=0))
    pipeline = Pipeline(bundle, LastValueEngine(1), interval_adapt_rate=0)
    nan = float("nan")
    values = [[v] for v in (0.0, 9.0, 18.0, nan, 0.0, 9.0, 9.0, 18.0, 30.0, 60.0, 90.0)]
    times = [0, 1, 2, 3, 4, 5, 6, 7, 10, 500, 501]
    assert runs_of(pipeline.process(batch(["a"] * 11, times, values))) == [0, 1, 2, 2, 3, 4, 0, 1, 1, 0, 1]


def test_the_longest_run_of_any_target_counts() -> None:
    """Each target and each stream has its own run; an uncalibrated model has none."""
    bundle = calibrated(make_bundle(channels=2, targets=2, horizon=1, labels=0))
    engine = LastValueEngine(2)
    engine.input_size = 2
    engine.scan = engine.step = lambda x, h: (x[:, ::-1].copy(), h)  # type: ignore[method-assign]
    pipeline = Pipeline(bundle, engine, interval_adapt_rate=0)
    values = [[0.0, 0.0], [9.0, 0.0], [18.0, 0.0], [18.0, 9.0], [27.0, 18.0], [27.0, 27.0]]
    names = [name for _ in values for name in "ab"]
    times = [t for t in range(len(values)) for _ in "ab"]
    both = [row for pair in zip(values, [[0.0, 0.0]] * 6, strict=True) for row in pair]
    assert runs_of(pipeline.process(batch(names, times, both))) == [0, 0, 1, 0, 2, 0, 1, 0, 2, 0, 3, 0]
    assert toy_pipeline(make_bundle(channels=3, labels=2)).process(batch(["a"], [0])).consecutive_misses is None


def test_times_of_the_toy_streams_are_today() -> None:
    """The tests use current event times, not 1970."""
    assert START_NS > 1.7e18


@pytest.mark.parametrize("row", [(0.5, 1.0, 2.0), (-3.0, -2.0, -1.0), (0.0, 0.0, 0.0)])
def test_intervals_of_a_biased_calibration_are_counted_right_and_recover(row: tuple[float, ...]) -> None:
    """With residual quantiles on one side, or all 0: live coverage equals that of the outputs and reaches 90 %."""
    values = random_walk(8000, seed=2)
    out, scores = score_values(values, row=row)
    assert out.lower is not None
    assert out.upper is not None
    y = np.array(values, np.float32)[:, 0]
    inside = (y[1:] >= out.lower[:-1, 0, 0]) & (y[1:] <= out.upper[:-1, 0, 0])
    assert scores.coverage()[0, 0] == pytest.approx(inside.mean(), abs=1e-3)
    assert inside[4000:].mean() == pytest.approx(0.9, abs=0.03)


def test_crossing_quantiles_still_give_an_interval() -> None:
    """Crossing quantiles give a slightly widened interval, neither inverted nor very wide."""
    bundle = calibrated(make_bundle(channels=3, labels=0, quantiles=(0.1, 0.5, 0.9)))
    pipeline = toy_pipeline(bundle)  # its outputs ascend by 1: column k is the k-th quantile
    out = pipeline.process(batch(["a"] * 50, list(range(50))))
    assert out.forecast is not None
    assert out.lower is not None
    assert out.upper is not None
    assert (out.lower < out.forecast).all()
    assert (out.upper > out.forecast).all()
    engine = LastValueEngine(pipeline.engine.output_size)  # all quantiles the same: they meet
    engine.input_size = 3
    engine.step = lambda x, h: (np.repeat(x[:, :1], engine.output_size, axis=1), h)  # type: ignore[method-assign]
    met = Pipeline(bundle, engine).process(batch(["a"] * 5, list(range(5))))
    assert met.lower is not None
    assert met.upper is not None
    assert (met.upper > met.lower).all()
    assert (met.upper - met.lower < 1).all()
