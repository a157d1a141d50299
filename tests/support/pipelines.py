"""A pipeline over an engine that computes element by element: exact for any batch."""

from __future__ import annotations

import msgspec
import numpy as np

from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.manifest import Calibration
from stream_gru.pipeline.pipeline import Pipeline
from tests.support.batches import CHANNELS
from tests.support.models import make_bundle


class ToyEngine:
    """h' = h / 2 + sum of the inputs on each state number; output k = h'[0] + k.  S and K are free."""

    name = "toy"

    def __init__(self, input_size: int, state_size: int, output_size: int) -> None:
        self.input_size, self.state_size, self.output_size = input_size, state_size, output_size

    def initial_state(self, n: int) -> F32:
        """Return zeros, (n, S)."""
        return np.zeros((n, self.state_size), np.float32)

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance B streams."""
        total = np.zeros((len(x), 1), np.float32)
        with np.errstate(all="ignore"):
            for column in x.T:  # added in a fixed order: the same bits for every batch size
                total[:, 0] += column
            new: F32 = (h * np.float32(0.5) + total).astype(np.float32)
            # A state that overflows stays broken, as that of a real network does.
            new[~np.isfinite(new)] = np.nan
        outputs: F32 = (new[:, :1] + np.arange(self.output_size)).astype(np.float32)
        return outputs, new

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance one stream."""
        outputs = np.empty((len(x), self.output_size), np.float32)
        state = h[None]
        for index in range(len(x)):
            out, state = self.step(x[index : index + 1], state)
            outputs[index] = out[0]
        return outputs, state[0]


def calibrated(bundle: Bundle, **changes: object) -> Bundle:
    """The bundle with residual quantiles of -1, 0 and 1, and with other changes to its manifest."""
    head = bundle.manifest.forecast
    if head is not None:
        row = [-1.0, 0.0, 1.0]
        changes["calibration"] = Calibration(
            levels=[0.05, 0.5, 0.95], residuals=[[row] * head.horizon] * len(head.targets), samples=100
        )
    manifest = msgspec.structs.replace(bundle.manifest, **changes)
    return Bundle(bundle.path, manifest, bundle.weights, bundle.tflite)


def toy_pipeline(bundle: Bundle | None = None, **options: object) -> Pipeline:
    """A pipeline over a `ToyEngine` of the bundle's sizes."""
    bundle = bundle or calibrated(make_bundle(channels=CHANNELS, labels=2, warm_up=2))
    manifest = bundle.manifest
    engine = ToyEngine(manifest.input_size, manifest.state_size, manifest.output_size)
    return Pipeline(bundle, engine, **options)  # type: ignore[arg-type]
