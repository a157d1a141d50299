"""Scores as plain numbers: stored in the manifest, printed by `inspect`, drawn in the report."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from stream_gru.core.types import F64, I64
from stream_gru.model.explain import table

MAX_CONFUSION_LABELS = 256
"""Most labels of a stored confusion matrix: L * L numbers of more would be too large for the manifest."""


class ErrorScores(Struct, frozen=True, kw_only=True):
    """Errors of one forecaster: (D, H) nested lists, engineering units; ``mse_scaled`` over all targets and horizons,
    in units of the training part's standard deviation (as published tables give it).
    """

    mae: list[list[float]]
    rmse: list[list[float]]
    mse_scaled: float
    mae_scaled: float


class ForecastScores(Struct, frozen=True, kw_only=True):
    """The model's forecasts, its intervals, and the baselines on the same pairs of sample and horizon.

    ``skill``: by baseline, 1 - mae_scaled / baseline's mae_scaled.  ``season_steps``: season of the seasonal naive.
    """

    targets: list[str]
    units: list[str]
    samples: int
    model: ErrorScores
    baselines: dict[str, ErrorScores]
    skill: dict[str, float]
    level: float
    coverage: list[list[float]]
    mean_width: list[list[float]]
    season_steps: int | None = None


class ClassScores(Struct, frozen=True, kw_only=True):
    """Classification of every labelled row; reliability by bins of confidence.

    ``confusion[true][predicted]``: counts, empty with more than `MAX_CONFUSION_LABELS` labels; ``rows``: rows of
    each true label, empty when the confusion matrix contains them (see `label_rows`).
    """

    labels: list[str]
    samples: int
    accuracy: float
    macro_f1: float
    majority_accuracy: float
    confusion: list[list[int]]
    recall: list[float]
    accuracy_by_stream: dict[str, float]
    expected_calibration_error: float
    reliability: list[tuple[float, float, int]]
    rows: list[int] = []

    @property
    def label_rows(self) -> list[int]:
        """Rows of each true label."""
        return self.rows if self.rows else [sum(counts) for counts in self.confusion]


class Scores(Struct, frozen=True, kw_only=True):
    """All scores of one set of recordings, streamed through the pipeline."""

    streams: int
    applied: int
    dropped: dict[str, int]
    resets: dict[str, int]
    forecast: ForecastScores | None = None
    classes: ClassScores | None = None
    verdict: list[str] = []


def class_scores(
    labels: list[str],
    truth: I64,
    probabilities: F64,
    streams: list[str],
    stream: I64,
    majority: int,
) -> ClassScores | None:
    """Score classifications; rows with truth -1 are left out; None when no row has a truth.

    ``truth``: (N,) codes; ``probabilities``: (N, L); ``majority``: the class that a constant prediction would give.
    Calibration error: Guo et al., "On calibration of modern neural networks", ICML 2017, ten bins.
    """
    known = (truth >= 0) & np.isfinite(probabilities).all(axis=1)
    if not known.any():
        return None
    # The table of probabilities may be large: copy only what is needed.
    given, confidence = probabilities.argmax(axis=1)[known], probabilities.max(axis=1)[known]
    truth, stream = truth[known], stream[known]
    right, size = given == truth, len(labels)
    diagonal, rows, columns = (np.bincount(codes, minlength=size) for codes in (truth[right], truth, given))
    many = size > MAX_CONFUSION_LABELS
    f1 = 2 * diagonal / np.maximum(rows + columns, 1)
    reliability = _reliability(confidence, right)
    return ClassScores(
        labels=labels,
        samples=len(truth),
        accuracy=float(right.mean()),
        macro_f1=float(f1[rows > 0].mean()),
        majority_accuracy=float((truth == majority).mean()),
        confusion=[] if many else np.bincount(truth * size + given, minlength=size**2).reshape(size, size).tolist(),
        recall=[float(d / r) if r else float("nan") for d, r in zip(diagonal, rows, strict=True)],
        accuracy_by_stream={
            streams[index]: float(right[stream == index].mean()) for index in np.unique(stream).tolist()
        },
        expected_calibration_error=sum(n * abs(c - a) for c, a, n in reliability) / len(truth),
        reliability=reliability,
        rows=rows.tolist() if many else [],
    )


def _reliability(
    confidence: F64, right: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, rows) of each of ten bins that holds rows."""
    bins = np.minimum((confidence * 10).astype(int), 9)
    return [
        (float(confidence[mine].mean()), float(right[mine].mean()), int(mine.sum()))
        for index in range(10)
        if (mine := bins == index).any()
    ]


def score_lines(scores: Scores) -> list[str]:
    """The lines of a whole evaluation: counts, forecast beside baselines, classes, verdict."""
    lines = [
        f"{scores.applied:,} samples of {scores.streams} streams;"
        f" dropped: {_counts(scores.dropped)}; resets: {_counts(scores.resets)}"
    ]
    if scores.forecast is not None:
        lines += ["", *forecast_lines(scores.forecast)]
    if scores.classes is not None:
        lines += ["", *class_lines(scores.classes)]
    return [*lines, "", *scores.verdict]


def forecast_lines(scores: ForecastScores) -> list[str]:
    """Mean absolute error by target at the first, middle and last horizon, for the model and each baseline."""
    horizon = len(scores.model.mae[0])
    shown = sorted({1, (horizon + 1) // 2, horizon})
    rows = [["mean absolute error", *(f"+{h}" for h in shown)]]
    for d, (target, unit) in enumerate(zip(scores.targets, scores.units, strict=True)):
        name = f"{target} ({unit})" if unit else target
        for who, errors in {"model": scores.model, **scores.baselines}.items():
            rows.append([f"{name}  {who.replace('_', ' ')}", *(f"{errors.mae[d][h - 1]:.4g}" for h in shown)])
        rows.append([f"{name}  coverage", *(f"{scores.coverage[d][h - 1]:.1%}" for h in shown)])
    overall = [["all targets and horizons, scaled", "MSE", "MAE"]]
    for who, errors in {"model": scores.model, **scores.baselines}.items():
        overall.append([who.replace("_", " "), f"{errors.mse_scaled:.4f}", f"{errors.mae_scaled:.4f}"])
    return [*table(rows), "", *table(overall)]


def class_lines(scores: ClassScores) -> list[str]:
    """Recall by class, accuracy, and the worst stream."""
    rows = [["class", "rows", "recall"]]
    for label, count, recall in zip(scores.labels, scores.label_rows, scores.recall, strict=True):
        rows.append([label, f"{count:,}", "-" if recall != recall else f"{recall:.1%}"])
    worst = min(scores.accuracy_by_stream, key=scores.accuracy_by_stream.__getitem__)
    return [
        *table(rows),
        "",
        f"accuracy {scores.accuracy:.1%}, macro F1 {scores.macro_f1:.3f},"
        f" worst stream {worst} {scores.accuracy_by_stream[worst]:.1%}",
    ]


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items())) or "none"
