"""A noisy sine, x = sin(0.3 t) + 0.1 noise, scored against the best possible predictors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec import Struct

from stream_gru.core.types import F64
from stream_gru.examples.recipes.results import Outcome
from stream_gru.examples.recipes.sequences import Sequences

LABELS: tuple[str, ...] = ()
RATE, NOISE, PERIOD_S = 0.3, 0.1, 0.1
_PHASES, _TRIALS, _BLOCKS = 1024, 2048, 20


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Samples of each part of one series, in their order."""

    train: int = 100_000
    validation: int = 10_000
    test: int = 100_000


def recordings(options: Options, place: Path | None) -> dict[str, Sequences]:
    """The parts train, validation and test, each one unbroken stretch of the series."""
    rng, start, parts = np.random.default_rng(1), 0, {}
    for part, size in (("train", options.train), ("validation", options.validation), ("test", options.test)):
        t = PERIOD_S * np.arange(start, start + size)
        x = np.sin(RATE * t) + NOISE * rng.normal(size=size)
        parts[part] = Sequences(x.astype(np.float32)[:, None], np.array([size], np.int64))
        start += size
    return parts


def findings(options: Options, outcome: Outcome) -> Iterator[str]:
    """Mean squared error beside that of who knows the series, and of who sees as many samples as the model."""
    error, horizon = outcome.mean_squared_error, outcome.horizon
    scored = int(outcome.streamed.trusted.sum())
    yield f"test MSE, {horizon} steps ahead: {error:.5f}, of {scored:,} answers in {outcome.rows:,} streamed steps"
    yield f"  the best possible predictor knows all but the noise: {NOISE**2:.5f}; ours is {error / NOISE**2 - 1:+.1%}"
    if outcome.window:
        bound = window_bound(outcome.window, horizon)
        seen = f"the best possible one that sees {outcome.window} samples"
        yield f"  {seen}: {bound:.5f}; ours is {error / bound - 1:+.1%}"


def window_bound(window: int, horizon: int) -> float:
    """Mean squared error of the best predictor that sees ``window`` samples: the posterior mean over the phase.

    Everything but the phase is known to it; the expectation is taken over seeded windows.
    """
    rng, step = np.random.default_rng(0), RATE * PERIOD_S
    phases = np.linspace(0, 2 * np.pi, _PHASES, endpoint=False)
    back = step * np.arange(1 - window, 1)
    shapes: F64 = np.sin(phases[:, None] + back)
    answers, energy = np.sin(phases + step * horizon), 0.5 * (shapes**2).sum(axis=1)
    errors = []
    for _ in range(_BLOCKS):
        true = rng.uniform(0, 2 * np.pi, _TRIALS)
        seen = np.sin(true[:, None] + back) + NOISE * rng.normal(size=(_TRIALS, window))
        log = (seen @ shapes.T - energy) / NOISE**2
        weight = np.exp(log - log.max(axis=1, keepdims=True))
        errors.append(weight @ answers / weight.sum(axis=1) - np.sin(true + step * horizon))
    return NOISE**2 + float(np.mean(np.square(errors)))
