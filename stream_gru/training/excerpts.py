"""Excerpts of streamed recordings for the figures of the report: a piece with movement, without a reset."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from stream_gru.core.types import F64, I64, Mask
from stream_gru.model.manifest import Manifest
from stream_gru.training.evaluation.evaluate import StreamedRecording
from stream_gru.training.evaluation.scores import ForecastScores
from stream_gru.training.figures import Excerpt


def find_excerpt(
    manifest: Manifest, scores: ForecastScores, streamed: StreamedRecording, target: int
) -> Excerpt | None:
    """Return the excerpt to draw for one target; None when no forecast has a truth.

    Pieces without a reset and with most forecasts are ranked by the variance of their truth; the piece at the 90th
    percentile is taken: it has movement, but is not the most extreme one.
    """
    steps, horizon, column = streamed.steps, streamed.truth.shape[2], manifest.target_index[target]
    truth = np.where(steps.observed[:, column], steps.x[:, column], np.nan).astype(np.float64)
    tables = {h: _forecasts_at_target_time(streamed, target, h) for h in sorted({1, horizon})}
    usable = {h: np.isfinite(truth) & np.isfinite(table[0]) for h, table in tables.items()}
    usable = {h: mask for h, mask in usable.items() if mask.any()}
    if not usable:
        return None
    length = min(max(200, 4 * horizon), 400)
    piece = _moving_piece(truth, np.logical_and.reduce(list(usable.values())), streamed.segment, length)
    return Excerpt(
        target=scores.targets[target],
        unit=scores.units[target],
        stream=_stream_name(streamed, piece),
        time_ns=steps.time_ns[piece],
        truth=truth[piece],
        forecasts=[(f"{duration(h * manifest.period_s)} (step {h})", tables[h][:, piece]) for h in usable],
        level=scores.level,
    )


def _forecasts_at_target_time(streamed: StreamedRecording, d: int, h: int) -> F64:
    """(3, T): forecast, lower and upper bound made ``h`` steps earlier in the same segment, NaN elsewhere."""
    moved = np.full((3, len(streamed.segment)), np.nan)
    if h < moved.shape[1]:
        same = streamed.segment[h:] == streamed.segment[:-h]
        for row, table in zip(moved, (streamed.forecast, streamed.lower, streamed.upper), strict=True):
            row[h:][same] = table[:-h, d, h - 1][same]
    return moved


def _moving_piece(truth: F64, usable: Mask, segment: I64, length: int) -> slice:
    edges = [0, *(np.flatnonzero(np.diff(segment)) + 1).tolist(), len(segment)]
    every = max(1, length // 4)
    pieces = [
        (start, min(start + length, end))
        for begin, end in pairwise(edges)
        for start in range(begin, max(begin, end - length) + 1, every)
    ]
    first, last = np.array(pieces, np.int64).T
    level = truth - np.nanmean(truth)
    sums = [np.cumsum(np.append(0.0, np.where(usable, part, 0.0))) for part in (np.ones_like(level), level, level**2)]
    count, total, squares = (part[last] - part[first] for part in sums)
    full = np.flatnonzero(count >= max(1.0, 0.8 * count.max()))
    if not len(full):  # no step has all the horizons
        return slice(*pieces[0])
    variance = squares[full] / count[full] - (total[full] / count[full]) ** 2
    ranked = full[np.argsort(variance, kind="stable")]
    return slice(*pieces[ranked[round(0.9 * (len(ranked) - 1))]])


def _stream_name(streamed: StreamedRecording, piece: slice) -> str:
    rows = streamed.steps.row
    real = rows[rows >= 0]
    inside = rows[piece][rows[piece] >= 0]
    if not len(inside) or len(real) != len(streamed.out):
        return "unknown"
    return streamed.out.stream_names[int(streamed.out.stream_index[int((real < inside[0]).sum())])]


def duration(seconds: float) -> str:
    """Return a duration in the largest unit that gives at least 1, e.g. ``1.5 min``."""
    for unit, size in (("d", 86_400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds * 1000:.4g} ms"
