"""Stream a recording through the runtime, in a process of its own that has no TensorFlow.

``python -m stream_gru.examples.recipes.worker BUNDLE RECORDING OUT.npz``
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from time import perf_counter

import numpy as np

from stream_gru.config import load_config
from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.plugins import require_training_extra
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


def stream_to_file(bundle: Path, recording: Path, target: Path) -> None:
    """Stream a recording and save the predictions.  Raises SystemExit when TensorFlow or Keras was imported."""
    save_predictions(target, stream(bundle, recording))
    loaded = {"tensorflow", "keras"} & set(sys.modules)
    if loaded:
        raise SystemExit(f"the runtime imported {', '.join(sorted(loaded))}; expected neither tensorflow nor keras")


def train_and_report(config: Path, bundle: Path, report: Path) -> None:
    """Train a bundle and write the seconds of its epochs and the peak memory."""
    with require_training_extra():
        from stream_gru.training.progress import default_reporter
        from stream_gru.training.train import train
    settings = load_config(config, CATALOG)
    trained = train(settings, bundle, bundle.with_suffix(".work"), default_reporter(), lambda _: None)
    seconds = sum(row["seconds"] for row in trained.fitted.history)
    report.write_text(json.dumps({"seconds": seconds, "memory_bytes": peak_memory()}))


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # the parent process reports it
        {"stream": stream_to_file, "train": train_and_report}[sys.argv[1]](*map(Path, sys.argv[2:]))
