"""Stream a recording through the runtime, in a process of its own that has no TensorFlow.

``python -m stream_gru.examples.recipes.stream_worker BUNDLE RECORDING OUT.npz``
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import numpy as np

from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.types import F32, PredictionBatch
from stream_gru.examples.recipes.results import Predictions, peak_memory, save_predictions
from stream_gru.model.bundle import load_bundle
from stream_gru.pipeline.pipeline import Pipeline

BATCH_ROWS = 16_384


def stream(bundle: Path, recording: Path) -> Predictions:
    """All outputs of a recording, in the order of its rows; the time is of `Pipeline.process` alone."""
    model = load_bundle(bundle)
    batch = read_files([str(recording)], Fields.of(model.manifest.input, model.manifest.channels))
    pipeline = Pipeline(model, "litert", max_streams=len(batch.stream_names))
    outputs, scorable, seconds = [], [], 0.0
    for first in range(0, len(batch), BATCH_ROWS):
        part = batch.take(slice(first, first + BATCH_ROWS))
        begin = perf_counter()
        out = pipeline.process(part)
        seconds += perf_counter() - begin
        if len(out) != len(part):
            raise ValueError(f"{recording}: expected every row to be applied, dropped {dict(out.dropped)}")
        outputs.append(_columns(out))
        scorable.append(out.scorable)
    return Predictions(np.concatenate(outputs), np.concatenate(scorable), seconds, peak_memory())


def _columns(out: PredictionBatch) -> F32:
    parts = [out.forecast.reshape(len(out), -1)] if out.forecast is not None else []
    if out.probabilities is not None:
        parts.append(out.probabilities)
    return np.concatenate(parts, axis=1)


def main(arguments: list[str]) -> None:
    """Run the module as a command.  Raises SystemExit when TensorFlow or Keras was imported."""
    bundle, recording, target = map(Path, arguments)
    save_predictions(target, stream(bundle, recording))
    loaded = {"tensorflow", "keras"} & set(sys.modules)
    if loaded:
        raise SystemExit(f"the runtime imported {', '.join(sorted(loaded))}; expected neither tensorflow nor keras")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # the parent process reports it
        main(sys.argv[1:])
