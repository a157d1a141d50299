"""Small trainings: two waves to learn from, a network, an interrupt, and the truths of their forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stream_gru.config.model_schema import ClassesConfig, ForecastConfig, LayerConfig, ModelConfig, RegularizerConfig
from stream_gru.config.train_schema import ChannelConfig, TrainingConfig
from stream_gru.core.types import F32, Mask
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.fit import FitResult, fit
from stream_gru.training.progress import SilentReporter
from stream_gru.training.splits import Segment, measure_scaling

SILENT = SilentReporter()
QUICK = TrainingConfig(batch_size=4, bptt_steps=16, epochs=4, patience=9, learning_rate=0.01, warm_up=4)


def waves(count: int, size: int = 300, noise: float = 0.1, seed: int = 0) -> list[Segment]:
    """Two channels: a noisy sine of period 25 around 50 and its cosine; the label is whether the sine rises."""
    rng, segments = np.random.default_rng(seed), []
    for number in range(count):
        phase = 2 * np.pi * (np.arange(size) / 25 + rng.random())
        x = np.stack([50 + 5 * np.sin(phase), np.cos(phase)], axis=1) + noise * rng.normal(size=(size, 2))
        label = (np.cos(phase) > 0).astype(np.int32)
        label[:10] = -1
        segments.append(Segment(f"s{number}", np.arange(size), x.astype(np.float32), np.ones((size, 2), bool), label))
    return segments


def spec_of(
    forecast: ForecastConfig | None = None, classes: ClassesConfig | None = None, layer: LayerConfig | None = None
) -> NetworkSpec:
    """A network on the two channels of `waves`."""
    model = ModelConfig(layer=[layer or LayerConfig(units=8)], forecast=forecast, classes=classes)
    return NetworkSpec.from_config(
        model, [ChannelConfig(name="sine"), ChannelConfig(name="cosine")], ["falls", "rises"]
    )


BOTH = spec_of(
    ForecastConfig(targets=["sine"], horizon=3),
    ClassesConfig(),
    LayerConfig(units=8, dropout=0.1, recurrent_dropout=0.1, kernel_regularizer=RegularizerConfig(l2=1e-4)),
)


def train(
    spec: NetworkSpec,
    folder: Path,
    training: TrainingConfig = QUICK,
    reporter: SilentReporter = SILENT,
    segments: Sequence[Segment] | None = None,
    resume: bool = False,
) -> FitResult:
    """Fit on three waves, validate on two others."""
    segments = waves(3) if segments is None else segments
    return fit(
        spec, training, segments, waves(2, seed=9), measure_scaling(segments, "standard"), folder, reporter, resume
    )


def without_seconds(fitted: FitResult) -> list[dict[str, float]]:
    """The history without the seconds, which differ."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in fitted.history]


class InterruptAt(SilentReporter):
    """Raises KeyboardInterrupt after some batches, as Ctrl-C does."""

    def __init__(self, batch: int) -> None:
        self.left = batch

    def on_batch(self, done: int, total: int, loss: float) -> None:
        """Count down, then interrupt."""
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def forecast_truth(segment: Segment, target_index: Sequence[int], horizon: int) -> tuple[F32, Mask]:
    """Return the truths: y (T, D, H) with y[t, d, h-1] = x[t+h, target d], and where it counts, same shape.

    It does not count beyond the end of the segment (y is 0 there) nor where the value was filled in.
    """
    beyond = np.zeros((horizon, len(target_index)))
    values = np.concatenate([segment.x[:, target_index], beyond.astype(np.float32)])
    seen = np.concatenate([segment.observed[:, target_index], beyond.astype(np.bool_)])
    view = np.lib.stride_tricks.sliding_window_view
    return view(values, horizon, axis=0)[1:], view(seen, horizon, axis=0)[1:]
