"""Scores as lines of text."""

from __future__ import annotations

from stream_gru.model.text_table import table
from stream_gru.training.evaluation.scores import ClassScores, ForecastScores, Scores


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
