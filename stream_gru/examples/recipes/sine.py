"""A noisy sine, x = sin(0.3 t) + 0.1 noise, scored against the best possible predictors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct

from stream_gru.core.types import F64
from stream_gru.examples.recipes.results import RecipeResult
from stream_gru.examples.recipes.sequences import Sequences

LABELS: tuple[str, ...] = ()
RATE, NOISE, PERIOD_S = 0.3, 0.1, 0.1
_PHASES, _TRIALS, _BLOCKS = 1024, 2048, 20


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Samples of each part of one series, in this order."""

    train: int = 100_000
    validation: int = 10_000
    test: int = 100_000


def recordings(options: Options, data_path: Path | None) -> dict[str, Sequences]:
    """The parts train, validation and test, each a contiguous part of the series."""
    rng, start, parts = np.random.default_rng(1), 0, {}
    for part, size in (("train", options.train), ("validation", options.validation), ("test", options.test)):
        t = PERIOD_S * np.arange(start, start + size)
        x = np.sin(RATE * t) + NOISE * rng.normal(size=size)
        parts[part] = Sequences(x.astype(np.float32)[:, None], np.array([size], np.int64))
        start += size
    return parts


def report_lines(options: Options, result: RecipeResult) -> Iterator[str]:
    """The mean squared error beside that of the best predictor, with all knowledge and with a window of samples."""
    error, horizon = result.mean_squared_error, result.horizon
    scored = int(result.streamed.scorable.sum())
    yield f"test MSE, {horizon} steps ahead: {error:.5f}, of {scored:,} predictions in {result.rows:,} streamed steps"
    yield f"  best possible predictor (knows all but the noise): {NOISE**2:.5f}; this model {error / NOISE**2 - 1:+.1%}"
    if result.window:
        bound = window_bound(result.window, horizon)
        window = f"best possible predictor from {result.window} samples"
        yield f"  {window}: {bound:.5f}; this model {error / bound - 1:+.1%}"


def window_bound(window: int, horizon: int) -> float:
    """Mean squared error of the best predictor from ``window`` samples: the posterior mean over the phase.

    It knows everything but the phase; the expectation is taken over seeded random windows.
    """
    rng, step = np.random.default_rng(0), RATE * PERIOD_S
    phases = np.linspace(0, 2 * np.pi, _PHASES, endpoint=False)
    back = step * np.arange(1 - window, 1)
    shapes: F64 = np.sin(phases[:, None] + back)
    predictions, energy = np.sin(phases + step * horizon), 0.5 * (shapes**2).sum(axis=1)
    errors = []
    for _ in range(_BLOCKS):
        true = rng.uniform(0, 2 * np.pi, _TRIALS)
        seen = np.sin(true[:, None] + back) + NOISE * rng.normal(size=(_TRIALS, window))
        log = (seen @ shapes.T - energy) / NOISE**2
        weight = np.exp(log - log.max(axis=1, keepdims=True))
        errors.append(weight @ predictions / weight.sum(axis=1) - np.sin(true + step * horizon))
    return NOISE**2 + float(np.mean(np.square(errors)))
