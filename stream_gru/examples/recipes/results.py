"""What a recipe has come to: the model, how it was trained, and its answers on the test part by two ways."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stream_gru.core.types import F32, F64, I32, Mask
from stream_gru.model.bundle import Bundle
from stream_gru.model.parity import scaled_difference
from stream_gru.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Answers:
    """Outputs (R, K) for each of the R rows of the test part, which are to be trusted (R,): those are scored.

    With how long they took, and the peak memory of the process.
    """

    outputs: F32
    trusted: Mask
    seconds: float
    memory_bytes: int

    @property
    def rate(self) -> float:
        """Rows a second."""
        return len(self.outputs) / self.seconds


@dataclass(frozen=True)
class Outcome:
    """``history`` one row for each look at the validation part; ``label`` (R,) class of each row, -1 for none;
    ``truth`` (R, D) what was observed the longest horizon later, NaN where it is unknown.

    Scores are those of the streamed answers.
    """

    bundle: Bundle
    history: list[dict[str, float]]
    streamed: Answers
    batch: Answers
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
        """Steps after which the state is reset by the regime, 0 where it is carried."""
        return self.bundle.manifest.window or 0

    @property
    def largest_difference(self) -> float:
        """Between the two ways, over all rows and outputs, in scaled units (`stream_gru.model.parity`)."""
        bundle = self.bundle
        tables = self.streamed.outputs, self.batch.outputs
        return float(scaled_difference(bundle.manifest, bundle.weights, *tables).max())

    def accuracy_of(self, answers: Answers) -> float:
        """Share of the labelled and trusted rows whose likeliest class is right."""
        return accuracy(self._probabilities(answers), answers.trusted, self.label)

    @property
    def cross_entropy(self) -> float:
        """Mean of -log p of the true class, in nats."""
        known = np.flatnonzero((self.label >= 0) & self.streamed.trusted)
        chance = self._probabilities(self.streamed)[known, self.label[known]].astype(np.float64)
        return float(-np.log(np.maximum(chance, 1e-12)).mean())

    @property
    def mean_squared_error(self) -> float:
        """Of the forecasts of the longest horizon, over all targets, in squared units of the channels."""
        return self.mean_squared_error_of(self.streamed)

    def mean_squared_error_of(self, answers: Answers) -> float:
        """The same of either way."""
        size = self.bundle.manifest.forecast_size
        head = self.bundle.manifest.forecast
        assert head is not None  # noqa: S101 - told to mypy
        quantiles = head.quantiles or [0.5]
        shape = len(answers.outputs), len(head.targets), head.horizon, len(quantiles)
        forecast = answers.outputs[:, :size].reshape(shape)[:, :, -1, quantiles.index(0.5)]
        return float(np.nanmean((forecast - self.truth)[answers.trusted] ** 2))

    def pipeline(self) -> Pipeline:
        """A fresh pipeline of the runtime on this model."""
        return Pipeline(self.bundle, "litert")

    def _probabilities(self, answers: Answers) -> F32:
        return answers.outputs[:, self.bundle.manifest.forecast_size :]


def accuracy(probabilities: F32, trusted: Mask, label: I32) -> float:
    """Share of the labelled and trusted rows (R,) whose likeliest class (R, L) is right."""
    known = (label >= 0) & trusted
    return float((probabilities[known].argmax(axis=1) == label[known]).mean())


def save_answers(path: Path, answers: Answers) -> None:
    """Write answers for another process."""
    told = [answers.seconds, answers.memory_bytes]
    np.savez(path, allow_pickle=False, outputs=answers.outputs, trusted=answers.trusted, told=told)


def load_answers(path: Path) -> Answers:
    """Read what `save_answers` has written."""
    with np.load(path, allow_pickle=False) as file:
        seconds, memory = file["told"].tolist()
        return Answers(file["outputs"], file["trusted"], seconds, int(memory))


def peak_memory() -> int:
    """Most bytes this process has had in memory, since it began its program; 0 off Linux.

    `getrusage` would tell that of the process it was started from, if that was larger.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
