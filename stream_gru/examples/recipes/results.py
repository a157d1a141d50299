"""Results of a recipe: the model, its training history, and its predictions of the test part, streamed and by Keras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stream_gru.core.types import F32, F64, I32, Mask
from stream_gru.model.bundle import Bundle
from stream_gru.model.parity import scaled_difference
from stream_gru.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Predictions:
    """Outputs (R, K) of the R rows of the test part; those that are ``scorable`` (R,) are scored.

    With the seconds they took and the peak memory of the process.
    """

    outputs: F32
    scorable: Mask
    seconds: float
    memory_bytes: int

    @property
    def rate(self) -> float:
        """Rows per second."""
        return len(self.outputs) / self.seconds


@dataclass(frozen=True)
class RecipeResult:
    """``history``: one row per validation; ``label`` (R,): class of each row, -1 for none; ``truth`` (R, D): the value
    observed the longest horizon later, NaN where it is unknown.

    Scores are those of the streamed predictions.
    """

    bundle: Bundle
    history: list[dict[str, float]]
    streamed: Predictions
    keras: Predictions
    label: I32
    truth: F64

    @property
    def rows(self) -> int:
        """Rows of the test part."""
        return len(self.label)

    @property
    def horizon(self) -> int:
        """Steps of the longest forecast, 0 without one."""
        return self.bundle.manifest.forecast.horizon if self.bundle.manifest.forecast else 0

    @property
    def window(self) -> int:
        """Steps after which the regime resets the state, 0 when it is carried."""
        return self.bundle.manifest.window or 0

    @property
    def largest_difference(self) -> float:
        """Between streamed and Keras, over all rows and outputs, in scaled units (`stream_gru.model.parity`)."""
        bundle = self.bundle
        tables = self.streamed.outputs, self.keras.outputs
        return float(scaled_difference(bundle.manifest, bundle.weights, *tables).max())

    def accuracy_of(self, predictions: Predictions) -> float:
        """Share of the labelled and scorable rows whose predicted class is correct."""
        return accuracy(self._probabilities(predictions), predictions.scorable, self.label)

    @property
    def cross_entropy(self) -> float:
        """Mean of -log p of the true class, in nats."""
        known = np.flatnonzero((self.label >= 0) & self.streamed.scorable)
        probability = self._probabilities(self.streamed)[known, self.label[known]].astype(np.float64)
        return float(-np.log(np.maximum(probability, 1e-12)).mean())

    @property
    def mean_squared_error(self) -> float:
        """Mean squared error of the streamed forecasts; see `mean_squared_error_of`."""
        return self.mean_squared_error_of(self.streamed)

    def mean_squared_error_of(self, predictions: Predictions) -> float:
        """Of the forecasts at the longest horizon, over all targets, in squared units of the channels."""
        size = self.bundle.manifest.forecast_size
        head = self.bundle.manifest.forecast
        assert head is not None  # noqa: S101 - for mypy
        quantiles = head.quantiles or [0.5]
        shape = len(predictions.outputs), len(head.targets), head.horizon, len(quantiles)
        forecast = predictions.outputs[:, :size].reshape(shape)[:, :, -1, quantiles.index(0.5)]
        return float(np.nanmean((forecast - self.truth)[predictions.scorable] ** 2))

    def pipeline(self) -> Pipeline:
        """A new pipeline of the runtime with this model."""
        return Pipeline(self.bundle, "litert")

    def _probabilities(self, predictions: Predictions) -> F32:
        return predictions.outputs[:, self.bundle.manifest.forecast_size :]


def accuracy(probabilities: F32, scorable: Mask, label: I32) -> float:
    """Share of the labelled and scorable rows (R,) whose predicted class (R, L) is correct."""
    known = (label >= 0) & scorable
    return float((probabilities[known].argmax(axis=1) == label[known]).mean())


def save_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions for another process."""
    cost = [predictions.seconds, predictions.memory_bytes]
    np.savez(path, allow_pickle=False, outputs=predictions.outputs, scorable=predictions.scorable, cost=cost)


def load_predictions(path: Path) -> Predictions:
    """Read the file of `save_predictions`."""
    with np.load(path, allow_pickle=False) as file:
        seconds, memory = file["cost"].tolist()
        return Predictions(file["outputs"], file["scorable"], seconds, int(memory))


def peak_memory() -> int:
    """Peak resident memory of this process in bytes; 0 on systems other than Linux.

    `getrusage` would return that of the parent process, if it was larger.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
