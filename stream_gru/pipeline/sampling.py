"""Feedback: what of a model's outputs is its next input, and how the next samples are made of it.

The contract of a bundle decides (`feedback_kind`):

categories  One channel, categorical, and a class head with a label for each category: class i is category i.  The next
            category is drawn from the probabilities.
forecast    All channels are quantities and targets of the forecast head: the forecast of one step ahead (with quantiles
            the median) is the next sample.  A forecast outside a channel's range is moved to its end, as the pipeline
            would take it for missing.

Decision: every stream draws from a generator of its own, made of the seed and its name, so that what a stream generates
depends neither on the streams beside it nor on the number of steps asked for.
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
    """What of a model's outputs can be its next input.  Raises ConfigError where nothing can."""
    if len(manifest.channels) == 1 and manifest.channels[0].categories:
        problem = _no_categories(manifest)
        kind: FeedbackKind = "categories"
    else:
        problem = _no_forecast(manifest)
        kind = "forecast"
    if not problem and manifest.regime == "windowed" and manifest.warm_up:
        raise ConfigError(
            f"generate: expected a model that answers at every step, got one that answers at the end of its windows of"
            f' {manifest.window} steps only; train with regime = "stateful", or with window_loss = "every"'
        )
    if problem:
        raise ConfigError(
            "generate: expected outputs that can be the next inputs (one categorical channel and a class head with a"
            f" label for each category; or quantities only and a forecast of all of them), got {problem}"
        )
    return kind


def draw(probabilities: F32, temperature: float, uniform: F64) -> tuple[I64, F64]:
    """Draw a category for each row: ``(G, L), uniform (G,) in 0..1 -> codes (G,), their probabilities (G,)``.

    From p ** (1 / temperature), renormalised; temperature 0 takes the likeliest, of equal ones the first.  The
    probabilities returned are those of temperature 1.  Raises ValueError where a row has no finite probabilities.
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
        # In logarithms relative to the likeliest: a low temperature takes no row to 0 as a whole.
        with np.errstate(divide="ignore", over="ignore"):
            weight = np.exp(np.log(p / p.max(axis=1, keepdims=True)) / temperature)
        ends = weight.cumsum(axis=1)
        codes = (ends <= (uniform * ends[:, -1])[:, None]).sum(axis=1)
    return codes, p[rows, codes]


class NextInput(Protocol):
    """What makes the next samples of all streams from their outputs."""

    clipped: int

    def next_values(self, outputs: PredictionBatch | None) -> F32:
        """The values after ``outputs`` (one row a stream; None: before the first), (G, C)."""
        ...

    def probabilities(self) -> F64 | None:
        """Those of all that was drawn, (N, G); None where nothing is."""
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
        """The categories after ``outputs``, drawn."""
        uniform = np.array([generator.random() for generator in self._generators])
        if outputs is None or outputs.probabilities is None:
            codes, probability = draw(self._first, 1.0, uniform)
        else:
            _expect_numbers(outputs.probabilities, outputs)
            codes, probability = draw(outputs.probabilities, self._temperature, uniform)
        self._probabilities.append(probability)
        return codes.astype(np.float32)[:, None]

    def probabilities(self) -> F64:
        """Those of all that was drawn, (N, G)."""
        return np.array(self._probabilities)


class ForecastFeedback:
    """Takes the forecast of one step ahead, within the range of each channel."""

    def __init__(self, manifest: Manifest) -> None:
        lows = [-np.inf if channel.min is None else channel.min for channel in manifest.channels]
        highs = [np.inf if channel.max is None else channel.max for channel in manifest.channels]
        self._low, self._high = np.array(lows, np.float32), np.array(highs, np.float32)
        self._column = np.argsort(manifest.target_index)  # where a channel stands among the targets
        self.clipped = 0

    def next_values(self, outputs: PredictionBatch | None) -> F32:
        """The forecasts of one step ahead, in the order of the channels."""
        if outputs is None or outputs.forecast is None:
            raise ValueError("expected forecasts to go on from")
        forecast = outputs.forecast[:, self._column, 0]
        _expect_numbers(forecast, outputs)
        values: F32 = np.clip(forecast, self._low, self._high)
        self.clipped += int(np.count_nonzero(values != forecast))
        return values

    def probabilities(self) -> None:
        """None: nothing is drawn."""


def _expect_numbers(values: F32, outputs: PredictionBatch) -> None:
    """Raises DataError where a stream's outputs are not finite."""
    broken = ~np.isfinite(values).all(axis=1)
    if broken.any():
        row = int(broken.argmax())
        raise DataError(
            f"stream {outputs.stream_names[outputs.stream_index[row]]!r}: expected finite outputs,"
            f" got {values[row].tolist()[:5]} at step {int(outputs.steps_since_reset[row]):,}"
        )


def _no_categories(manifest: Manifest) -> str:
    """Why categories cannot be drawn; ``""`` where they can."""
    categories = manifest.channels[0].categories
    if manifest.classes is None:
        return "no class head"
    if manifest.classes.activation == "sigmoid":
        return 'classes that stand each for itself (activation "sigmoid")'
    if len(manifest.classes.labels) != categories:
        return f"{categories} categories and {len(manifest.classes.labels)} labels"
    return ""


def _no_forecast(manifest: Manifest) -> str:
    """Why a forecast cannot be the next sample; ``""`` where it can."""
    kinds = [manifest.channels[part.index].name for part in manifest.categorical]
    if kinds:
        return f"{len(manifest.channels)} channels, of which categorical: {', '.join(kinds)}"
    if manifest.forecast is None:
        return "no forecast head"
    left = [channel.name for channel in manifest.channels if channel.name not in manifest.forecast.targets]
    return f"no forecast of {', '.join(left)}" if left else ""
