"""Evaluation: stream recordings through the pipeline and score every prediction against the truth.

Forecast errors are computed here from the recording itself, independently of the live scoring in
`stream_gru.pipeline.scoring`; a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from stream_gru.core.prediction import scored_class
from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32, F64, I64, Mask, PredictionBatch, ResetReason, SampleBatch
from stream_gru.model.bundle import KERAS, Bundle
from stream_gru.pipeline.conditioning.condition import condition
from stream_gru.pipeline.conditioning.gap_filling import Steps
from stream_gru.pipeline.conditioning.spec import conditioning_columns
from stream_gru.pipeline.pipeline import Pipeline, conditioning_spec
from stream_gru.pipeline.state_table import StateTable
from stream_gru.training.evaluation.baselines import LinearAR, seasonal_forecast
from stream_gru.training.evaluation.scores import ErrorScores, ForecastScores, Scores, class_scores
from stream_gru.training.splits import segment_slices

_NO_DIFFERENCE = 0.005  # a skill closer to 0 is reported as no difference


@dataclass(frozen=True)
class Baselines:
    """Baselines fitted on the training part; persistence needs no fit."""

    season_steps: int | None = None
    linear_ar: LinearAR | None = None
    majority: int = 0


@dataclass(frozen=True)
class StreamedRecording:
    """A recording streamed through the pipeline, by step (T steps, inserted ones included).

    ``forecast, lower, upper``: (T, D, H), NaN for inserted steps and for outputs that are not scorable (warming,
    degraded); ``truth``: (T, D, H), NaN where it is unknown; ``segment``: (T,) number of the segment between resets.
    """

    steps: Steps
    out: PredictionBatch
    forecast: F64
    lower: F64
    upper: F64
    truth: F64
    segment: I64


def stream_recording(
    bundle: Bundle, batch: SampleBatch, engine: str | Engine, *, level: float = 0.9, interval_adapt_rate: float = 0.5
) -> StreamedRecording:
    """Process a whole recording from the initial state."""
    pipeline = Pipeline(
        bundle,
        engine,
        interval_level=level,
        interval_adapt_rate=interval_adapt_rate,
        max_streams=len(batch.stream_names),
    )
    out = pipeline.process(batch)
    manifest = bundle.manifest
    spec = conditioning_spec(manifest)
    steps = condition(batch, StateTable(conditioning_columns(batch.values.shape[1])), spec, len(batch.stream_names))
    real = np.flatnonzero(steps.row >= 0)
    order = real[np.argsort(steps.row[real], kind="stable")]
    segment = segment_index(steps)
    shape = len(steps), len(out.spec.targets), out.spec.horizon
    by_step = [_by_step(part, shape, order, out.scorable) for part in (out.forecast, out.lower, out.upper)]
    truth = forecast_truth(steps, manifest.target_index, out.spec.horizon, segment)
    return StreamedRecording(steps, out, by_step[0], by_step[1], by_step[2], truth, segment)


def _by_step(rows: F32 | None, shape: tuple[int, int, int], order: I64, scorable: Mask) -> F64:
    table = np.full(shape, np.nan)
    if rows is not None:
        table[order[scorable]] = rows[scorable]
    return table


def segment_index(steps: Steps) -> I64:
    """Number of the segment of each step, (T,); the end of a window starts no new segment."""
    breaks = (steps.reset > 0) & (steps.reset != ResetReason.WINDOW)
    breaks[steps.start] = True
    return np.cumsum(breaks)


def forecast_truth(steps: Steps, targets: list[int], horizon: int, segment: I64) -> F64:
    """(T, D, H): the value observed h steps later in the same segment."""
    y = np.where(steps.observed[:, targets], steps.x[:, targets], np.nan).astype(np.float64)
    truth = np.full((*y.shape, horizon), np.nan)
    for h in range(1, min(horizon, len(y) - 1) + 1):
        same = segment[h:] == segment[:-h]
        truth[:-h, :, h - 1][same] = y[h:][same]
    return truth


def evaluate(
    bundle: Bundle, batch: SampleBatch, baselines: Baselines, engine: str | Engine = "auto"
) -> tuple[Scores, StreamedRecording]:
    """Score a bundle on a recording.  Deterministic; needs no Keras unless the engine is ``keras``."""
    streamed = stream_recording(bundle, batch, engine)
    out = streamed.out
    forecast = None if out.forecast is None else _forecast_scores(bundle, streamed, baselines)
    classes = None
    if out.probabilities is not None and out.label is not None:
        classes = class_scores(
            list(out.spec.labels),
            scored_class(out),
            out.probabilities.astype(np.float64),
            list(out.stream_names),
            out.stream_index.astype(np.int64),
            baselines.majority,
        )
    scores = Scores(
        streams=len(np.unique(out.stream_index)),
        applied=len(out),
        dropped={reason.text: n for reason, n in out.dropped.items()},
        resets={reason.text: n for reason, n in out.resets.items()},
        forecast=forecast,
        classes=classes,
    )
    return Scores(**{**{f: getattr(scores, f) for f in scores.__struct_fields__}, "verdict": verdict(scores)}), streamed


def keras_predictions(bundle: Bundle, steps: Steps, batch_size: int) -> tuple[F32, float]:
    """Predict all steps by ``model.predict`` of ``model.keras``; return outputs (T, K) and the seconds it took.

    Each segment is one sequence from the initial state; shorter ones are padded after their end, which changes no
    output before it.
    """
    import keras

    model = keras.models.load_model(bundle.path / KERAS)
    length = np.array([part.stop - part.start for part in segment_slices(steps)])
    x = np.zeros((len(length), int(length.max()), steps.x.shape[1]), np.float32)
    inside = np.arange(x.shape[1]) < length[:, None]
    x[inside] = steps.x  # segments are consecutive
    model.predict(x[:batch_size], batch_size=batch_size, verbose=0)  # trace the graph before timing
    begin = perf_counter()
    y = model.predict(x, batch_size=batch_size, verbose=0)
    seconds = perf_counter() - begin
    return np.asarray(y, np.float32)[inside], seconds


def _forecast_scores(bundle: Bundle, streamed: StreamedRecording, baselines: Baselines) -> ForecastScores | None:
    manifest = bundle.manifest
    targets = manifest.target_index
    scale = bundle.weights["scaling/scale"][targets].astype(np.float64)
    counted = np.isfinite(streamed.forecast) & np.isfinite(streamed.truth)
    if not counted.any():
        return None
    others = baseline_forecasts(streamed, targets, baselines)
    # A baseline without a value (no full season yet, too few lags) repeats the last value.
    errors = {name: np.where(counted, table - streamed.truth, np.nan) for name, table in others.items()}
    model = error_scores(np.where(counted, streamed.forecast - streamed.truth, np.nan), scale)
    scored = {name: error_scores(table, scale) for name, table in errors.items()}
    inside = (streamed.truth >= streamed.lower) & (streamed.truth <= streamed.upper)
    width = np.where(counted, streamed.upper - streamed.lower, np.nan)
    return ForecastScores(
        targets=list(streamed.out.spec.targets),
        units=[manifest.channels[index].unit for index in targets],
        samples=int(counted.any(axis=(1, 2)).sum()),
        model=model,
        baselines=scored,
        skill={name: 1 - model.mae_scaled / max(other.mae_scaled, 1e-12) for name, other in scored.items()},
        level=streamed.out.spec.level,
        coverage=_mean(np.where(counted & np.isfinite(width), inside, np.nan)).tolist(),
        mean_width=_mean(width).tolist(),
        season_steps=baselines.season_steps,
    )


def baseline_forecasts(streamed: StreamedRecording, targets: list[int], baselines: Baselines) -> dict[str, F64]:
    """(T, D, H) forecasts of each baseline, segment by segment."""
    steps, horizon = streamed.steps, streamed.truth.shape[2]
    y = steps.x[:, targets]
    persistence = np.repeat(y[:, :, None], horizon, axis=2).astype(np.float64)
    out = {"persistence": persistence}
    begins = np.flatnonzero(np.diff(streamed.segment, prepend=0))
    parts = [slice(a, b) for a, b in zip(begins, [*begins[1:], len(steps)], strict=True)]
    if baselines.season_steps:
        tables = [seasonal_forecast(y[part], baselines.season_steps, horizon) for part in parts]
        out["seasonal_naive"] = _filled(np.concatenate(tables), persistence)
    if baselines.linear_ar is not None:
        tables = [baselines.linear_ar.forecast(steps.x[part]) for part in parts]
        out["linear_ar"] = _filled(np.concatenate(tables), persistence)
    return out


def _filled(table: F64, other: F64) -> F64:
    return np.where(np.isfinite(table), table, other)


def error_scores(errors: F64, scale: F64) -> ErrorScores:
    """Means of errors (T, D, H), NaN where not counted."""
    scaled = errors / scale[:, None]
    return ErrorScores(
        mae=_mean(np.abs(errors)).tolist(),
        rmse=np.sqrt(_mean(errors**2)).tolist(),
        mse_scaled=float(np.nanmean(scaled**2)),
        mae_scaled=float(np.nanmean(np.abs(scaled))),
    )


def _mean(table: F64) -> F64:
    """Mean over steps, NaN where no step counts."""
    counted = np.isfinite(table)
    total = np.where(counted, table, 0).sum(axis=0)
    return np.divide(total, counted.sum(axis=0), out=np.full(total.shape, np.nan), where=counted.any(axis=0))


def verdict(scores: Scores) -> list[str]:
    """The scores in sentences: the model beside its baselines, its intervals beside their level."""
    lines = []
    if scores.forecast is not None:
        for name, skill in sorted(scores.forecast.skill.items()):
            other = scores.forecast.baselines[name]
            if abs(skill) < _NO_DIFFERENCE:
                word, much = "no better than", ""
            else:
                word, much = ("better than" if skill > 0 else "worse than"), f" by {abs(skill):.1%}"
            lines.append(
                f"forecast: {word} {name.replace('_', ' ')}{much}"
                f" (mean absolute error {scores.forecast.model.mae_scaled:.4g} against {other.mae_scaled:.4g},"
                " in standard deviations)"
            )
        coverage = np.array(scores.forecast.coverage)
        if np.isfinite(coverage).any():
            inside = f"{np.nanmean(coverage):.1%}"
            lines.append(f"intervals: {inside} of the truths inside, nominal {scores.forecast.level:.0%}")
    if scores.classes is not None:
        lines.append(
            f"classes: {scores.classes.accuracy:.1%} of {scores.classes.samples:,} labelled rows correct;"
            f" always predicting the most frequent training class: {scores.classes.majority_accuracy:.1%}"
        )
    return lines
