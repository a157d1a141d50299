"""Sampling: the next input of a model from its last outputs, for autoregressive generation.

The heads of a bundle decide which outputs are fed back (`feedback_kind`):

categories  One categorical channel and a class head with one label per category: class i is category i.  The next
            category is drawn from the probabilities.
forecast    All channels are quantities and targets of the forecast head: the forecast one step ahead (with quantiles
            the median) is the next sample.  A forecast outside the channel's range is clipped to it, because the
            pipeline would treat it as missing.

Decision: every stream has its own random generator, seeded by the seed and its name.  What a stream generates depends
neither on the other streams nor on the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal, Protocol

import numpy as np

from stream_gru.core.errors import ConfigError, DataError
from stream_gru.core.types import F32, F64, I64, PredictionBatch
from stream_gru.model.manifest import Manifest

FeedbackKind = Literal["categories", "forecast"]


def feedback_kind(manifest: Manifest) -> FeedbackKind:
    """Which outputs of a model can be its next input.  Raises ConfigError if none can."""
    if len(manifest.channels) == 1 and manifest.channels[0].categories:
        problem = _no_categories(manifest)
        kind: FeedbackKind = "categories"
    else:
        problem = _no_forecast(manifest)
        kind = "forecast"
    if not problem and manifest.regime == "windowed" and manifest.warm_up:
        raise ConfigError(
            f"generate: expected a model with outputs at every step, got outputs only at the end of each window of"
            f' {manifest.window} steps; train with regime = "stateful" or window_loss = "every"'
        )
    if problem:
        raise ConfigError(
            "generate: expected outputs that can be the next inputs (one categorical channel and a class head with one"
            f" label per category, or only quantities and a forecast of all of them), got {problem}"
        )
    return kind


def draw(probabilities: F32, temperature: float, uniform: F64) -> tuple[I64, F64]:
    """Draw a category for each row: ``(G, L), uniform (G,) in 0..1 -> codes (G,), their probabilities (G,)``.

    Draws from p ** (1 / temperature), renormalised; temperature 0 takes the most likely one, of equal ones the first.
    The returned probabilities are those of temperature 1.  Raises ValueError for a row without finite probabilities.
    """
    p = np.maximum(probabilities.astype(np.float64), 0)
    total = p.sum(axis=1, keepdims=True)
    if not (np.isfinite(total).all() and (total > 0).all()):
        raise ValueError("expected finite probabilities, of which at least one is above 0")
    p /= total
    rows = np.arange(len(p))
    if temperature == 0:
        codes = p.argmax(axis=1)
    else:
        # Logarithms relative to the most likely one: at low temperatures a row does not underflow to all zeros.
        with np.errstate(divide="ignore", over="ignore"):
            weight = np.exp(np.log(p / p.max(axis=1, keepdims=True)) / temperature)
        ends = weight.cumsum(axis=1)
        codes = (ends <= (uniform * ends[:, -1])[:, None]).sum(axis=1)
    return codes, p[rows, codes]


class NextInput(Protocol):
    """Makes the next samples of G streams from their outputs; ``clipped``: forecasts that were out of range."""

    clipped: int

    def next_values(self, outputs: PredictionBatch | None) -> F32:
        """The values that follow ``outputs`` (one row per stream; None: no sample yet), (G, C) float32."""
        ...

    def probabilities(self) -> F64 | None:
        """Probability of each drawn category, (N, G) float64; None if nothing is drawn."""
        ...


class CategorySampler:
    """Draws categories from the probabilities of the class head."""

    def __init__(self, streams: Sequence[str], categories: int, temperature: float, seed: int) -> None:
        self._streams, self._temperature = streams, temperature
        keys = [int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") for name in streams]
        self._generators = [np.random.default_rng([seed, key]) for key in keys]
        self._first = np.ones((len(streams), categories), np.float32)
        self._probabilities: list[F64] = []
        self.clipped = 0

    def next_values(self, outputs: PredictionBatch | None) -> F32:
        """Draw the next categories, (G, 1)."""
        uniform = np.array([generator.random() for generator in self._generators])
        if outputs is None or outputs.probabilities is None:
            codes, probability = draw(self._first, 1.0, uniform)
        else:
            _expect_numbers(outputs.probabilities, outputs)
            codes, probability = draw(outputs.probabilities, self._temperature, uniform)
        self._probabilities.append(probability)
        return codes.astype(np.float32)[:, None]

    def probabilities(self) -> F64:
        """Probability of each drawn category, (N, G) float64."""
        return np.array(self._probabilities)


class ForecastFeedback:
    """Uses the forecast one step ahead, clipped to the range of each channel."""

    def __init__(self, manifest: Manifest) -> None:
        lows = [-np.inf if channel.min is None else channel.min for channel in manifest.channels]
        highs = [np.inf if channel.max is None else channel.max for channel in manifest.channels]
        self._low, self._high = np.array(lows, np.float32), np.array(highs, np.float32)
        self._column = np.argsort(manifest.target_index)  # index of each channel among the targets
        self.clipped = 0

    def next_values(self, outputs: PredictionBatch | None) -> F32:
        """The forecasts one step ahead in the order of the channels, (G, C)."""
        if outputs is None or outputs.forecast is None:
            raise ValueError("outputs: expected forecasts of the last samples, got none")
        forecast = outputs.forecast[:, self._column, 0]
        _expect_numbers(forecast, outputs)
        values: F32 = np.clip(forecast, self._low, self._high)
        self.clipped += int(np.count_nonzero(values != forecast))
        return values

    def probabilities(self) -> None:
        """Return None: nothing is drawn."""


def _expect_numbers(values: F32, outputs: PredictionBatch) -> None:
    """Raise DataError when the outputs of a stream are not finite."""
    non_finite = ~np.isfinite(values).all(axis=1)
    if non_finite.any():
        row = int(non_finite.argmax())
        raise DataError(
            f"stream {outputs.stream_names[outputs.stream_index[row]]!r}: expected finite outputs,"
            f" got {values[row].tolist()[:5]} at step {int(outputs.steps_since_reset[row]):,}"
        )


def _no_categories(manifest: Manifest) -> str:
    """Why categories cannot be drawn; ``""`` if they can."""
    categories = manifest.channels[0].categories
    if manifest.classes is None:
        return "no class head"
    if manifest.classes.activation == "sigmoid":
        return 'independent classes (activation "sigmoid")'
    if len(manifest.classes.labels) != categories:
        return f"{categories} categories and {len(manifest.classes.labels)} labels"
    return ""


def _no_forecast(manifest: Manifest) -> str:
    """Why a forecast cannot be the next sample; ``""`` if it can."""
    categorical = [manifest.channels[part.index].name for part in manifest.categorical]
    if categorical:
        return f"{len(manifest.channels)} channels, of which categorical: {', '.join(categorical)}"
    if manifest.forecast is None:
        return "no forecast head"
    missing = [channel.name for channel in manifest.channels if channel.name not in manifest.forecast.targets]
    return f"no forecast of {', '.join(missing)}" if missing else ""
