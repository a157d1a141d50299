"""Run a recipe: recordings, configuration, training, then predictions of the test part, streamed and by Keras.

    data module ─▶ recordings/*.parquet ─┐
    recipe ──────▶ recipe.toml ──────────┴▶ train ─▶ bundle ─┬▶ runtime process ───▶ streamed predictions ─┐
                                                             └▶ model.predict ─────▶ Keras predictions ────┴▶ report

Training and streaming are the same as for any sensor: ``recipe.toml`` and the recordings stay, and
``stream-gru train recipe.toml`` trains the same model again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import tomli_w

from stream_gru.config import Config, load_config
from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import BundleError, ConfigError, ParityError
from stream_gru.core.types import F64, SampleBatch
from stream_gru.examples.recipes.recipe import Recipe, Variant, merged
from stream_gru.examples.recipes.results import Predictions, RecipeResult, accuracy, load_predictions
from stream_gru.examples.recipes.sequences import write_recording
from stream_gru.examples.recipes.worker import BATCH_ROWS
from stream_gru.model.bundle import Bundle, load_bundle
from stream_gru.model.explain import parameter_rows, table
from stream_gru.model.parity import CARRIED_TOLERANCE
from stream_gru.pipeline.conditioning.gap_filling import Steps
from stream_gru.pipeline.pipeline import conditioning_spec
from stream_gru.training.evaluation.evaluate import forecast_truth, keras_predictions, segment_index
from stream_gru.training.progress import Reporter
from stream_gru.training.splits import condition_all
from stream_gru.training.train import TrainResult, train

DEVICES = 256
CONFIG, RECORDINGS, BUNDLE = "recipe.toml", "recordings", "bundle"

Log = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """Results of a run and their report."""

    result: RecipeResult
    lines: list[str]


def prepare(variant: Variant, out: Path, data_path: Path | None, log: Log) -> Config:
    """Write recordings and configuration to the folder ``out``.  Raises DataError, ConfigError, BundleError."""
    table = variant.table
    text = f"# {table.title}\n{tomli_w.dumps(variant.document)}"
    _check_folder(out, text)
    module, options = _data_module(variant)
    parts = module.recordings(options, data_path)
    document = variant.document
    channels = [channel["name"] for channel in document["channel"]]
    period_s = document["data"]["period_s"]
    for part, sequences in parts.items():
        path = out / RECORDINGS / f"{part}.parquet"
        devices = min(DEVICES, len(sequences.length))
        write_recording(path, part, sequences, channels, module.LABELS, period_s, devices)
        log(f"wrote {path}: {len(sequences.length):,} sequences, {len(sequences.values):,} samples")
    (out / CONFIG).write_text(text)
    return load_config(out / CONFIG, CATALOG)


def run_recipe(
    recipe: Recipe, variant: Variant, out: Path, data_path: Path | None, reporter: Reporter, log: Log
) -> Run:
    """Run a recipe in the folder ``out``.  Raises the errors of `prepare` and `train`, KeyboardInterrupt."""
    config = prepare(variant, out, data_path, log)
    trained = train(config, out / BUNDLE, out / f"{BUNDLE}.work", reporter, log)
    if trained.fitted.stopped == "interrupted":
        log(f"interrupted: {trained.bundle.path} has the weights so far; the test part is not streamed")
        raise KeyboardInterrupt
    shutil.rmtree(out / f"{BUNDLE}.work", ignore_errors=True)
    result = measure(trained, config, out, log)
    module, options = _data_module(variant)
    lines = [*_lines(recipe, variant, result), *module.report_lines(options, result)]
    return Run(result, lines)


def measure(trained: TrainResult, config: Config, out: Path, log: Log) -> RecipeResult:
    """Predict the test part by the runtime in a process of its own, and by Keras.  ParityError when they differ."""
    bundle, path = trained.bundle, out / RECORDINGS / "test.parquet"
    log("streaming the test part through the runtime (litert, no TensorFlow), then through Keras")
    streamed = stream_in_process(bundle.path, path)
    batch = read_files([str(path)], Fields.of(bundle.manifest.input, bundle.manifest.channels))
    steps = condition_all(batch, conditioning_spec(bundle.manifest))
    y, seconds = keras_predictions(bundle, steps, config.training.batch_size)
    by_row = np.empty_like(y)
    by_row[steps.row] = y
    truth = np.empty((len(y), len(bundle.manifest.target_index)))
    truth[steps.row] = _last_truth(bundle, steps)
    result = RecipeResult(
        bundle=bundle,
        history=trained.fitted.history,
        streamed=streamed,
        keras=Predictions(by_row, streamed.scorable, seconds, 0),
        label=_labels(bundle, batch),
        truth=truth,
    )
    if not result.largest_difference <= CARRIED_TOLERANCE:
        raise ParityError(
            f"streamed and Keras predictions differ by {result.largest_difference:.3g} in scaled units,"
            f" more than {CARRIED_TOLERANCE:g}"
        )
    return result


def stream_in_process(bundle: Path, recording: Path) -> Predictions:
    """Stream a recording in a process of its own (`stream_gru.examples.recipes.worker`)."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "predictions.npz"
        _run_worker("stream", bundle, recording, target)
        return load_predictions(target)


def _run_worker(part: str, *paths: Path) -> None:
    command = [sys.executable, "-m", "stream_gru.examples.recipes.worker", part, *map(str, paths)]
    subprocess.run(command, check=True)  # noqa: S603 - our own module on our own files


def _check_folder(out: Path, text: str) -> None:
    """Raise BundleError unless the folder is new, empty, or of the same recipe and variant."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG).is_file() or (out / CONFIG).read_text() != text:
        raise BundleError(f"{out}: expected a new folder or one of the same recipe, found other files; see --out")


def _data_module(variant: Variant) -> tuple[Any, Any]:
    """The module that makes the recordings, and its options.  Raises ConfigError."""
    module = import_module(f"stream_gru.examples.recipes.{variant.table.data}")
    try:
        return module, msgspec.convert(variant.table.options, module.Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"recipe.options: {error}") from error


def _labels(bundle: Bundle, batch: SampleBatch) -> Any:
    classes = bundle.manifest.classes
    return batch.label_codes(classes.labels) if classes else np.full(len(batch), -1, np.int32)


def _last_truth(bundle: Bundle, steps: Steps) -> F64:
    """(T, D): the value of each target the longest horizon later."""
    head, targets = bundle.manifest.forecast, bundle.manifest.target_index
    if head is None:
        return np.empty((len(steps), 0))
    return forecast_truth(steps, targets, head.horizon, segment_index(steps))[:, :, -1]


def _lines(recipe: Recipe, variant: Variant, result: RecipeResult) -> Iterator[str]:
    manifest = result.bundle.manifest
    yield f"{recipe.name}: {variant.table.title}"
    yield f"tutorial     {variant.table.tutorial}"
    for row in parameter_rows(result.bundle):
        formula, number, count = row["formula"], row["by_formula"], row["by_count"]
        yield f"parameters   {row['layer']}: {formula}: {number:,} by formula, {count:,} by count"
    epoch = max(row["epoch"] for row in result.history)
    yield f"training     {epoch:g} epochs, {sum(row['seconds'] for row in result.history):.0f} s"
    how = f"runtime, litert, batches of {BATCH_ROWS:,} samples"
    ways = (("streamed", how, result.streamed), ("Keras", "model.predict", result.keras))
    for name, how, predictions in ways:
        yield f"{name:<12} {_score(result, predictions)}; {predictions.rate:,.0f} samples/s ({how})"
    outputs = result.streamed.outputs.size
    yield f"difference   {result.largest_difference:.2g} at most in scaled units, over {outputs:,} outputs"
    memory = result.streamed.memory_bytes / 2**20
    yield f"memory       {4 * manifest.state_size:,} bytes of state per stream; peak of the process {memory:.0f} MiB"


def _score(result: RecipeResult, predictions: Predictions) -> str:
    if result.bundle.manifest.classes is not None:
        return f"test accuracy {result.accuracy_of(predictions):.2%}"
    return f"test MSE {result.mean_squared_error_of(predictions):.5f}, {result.horizon} steps ahead"


_CARRIED = {"regime": "stateful", "batch_size": 128, "warm_up": 0}
WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("GRU, windows of 28, not unrolled", {}),
    ("GRU, windows of 28, unrolled", {"model": {"layer": [{"units": 128, "unroll": True}]}}),
    ("GRU, stateful, reset before each image", {"training": {**_CARRIED, "bptt_steps": 28}}),
    ("GRU, stateful, gradients cut every 14 rows", {"training": {**_CARRIED, "bptt_steps": 14}}),
    ("GRU, stateful, never reset", {"training": {**_CARRIED, "bptt_steps": 28}, "input": {"episode": ""}}),
    ("SimpleRNN, windows of 28", {"model": {"layer": [{"cell": "simple_rnn", "units": 128}]}}),
    ("LSTM, windows of 28", {"model": {"layer": [{"cell": "lstm", "units": 128}]}}),
)
EPOCHS = 3


@dataclass(frozen=True)
class Measured:
    """One way: seconds and peak memory of training, rows per second and peak memory of the runtime, test accuracy."""

    seconds: float
    memory_bytes: int
    rate: float
    runtime_bytes: int
    state_bytes: int
    accuracy: float


def compare_variants(variant: Variant, out: Path, data_path: Path | None, log: Callable[[str], None]) -> list[str]:
    """Train every way for a few epochs; return the table.  Raises the errors of `prepare`, DataError."""
    prepare(variant, out, data_path, log)
    rows = [["way", "training", "memory", "streamed", "memory", "state", "test accuracy"]]
    for number, (name, changes) in enumerate(WAYS):
        log(f"{name} ...")
        document = merged(merged(variant.document, {"training": {"epochs": EPOCHS}}), changes)
        measured = _measure(document, out, out / f"compare-{number}")
        rows.append(
            [
                name,
                f"{measured.seconds:.1f} s",
                f"{measured.memory_bytes / 2**20:,.0f} MiB",
                f"{measured.rate:,.0f}/s",
                f"{measured.runtime_bytes / 2**20:,.0f} MiB",
                f"{measured.state_bytes:,} bytes",
                f"{measured.accuracy:.2%}",
            ]
        )
    return [f"{EPOCHS} epochs each; the recording is included in both memory figures", "", *table(rows)]


def _measure(document: dict[str, Any], out: Path, folder: Path) -> Measured:
    folder.mkdir(exist_ok=True)
    config = folder / CONFIG
    files = {"data": {"files": [f"../{RECORDINGS}/*.parquet"]}}
    config.write_text(tomli_w.dumps(merged(document, files)))
    report = folder / "trained.json"
    _run_worker("train", config, folder / "bundle", report)
    trained = json.loads(report.read_text())
    recording = out / RECORDINGS / "test.parquet"
    bundle = load_bundle(folder / "bundle")
    predictions = stream_in_process(bundle.path, recording)
    assert bundle.manifest.classes is not None  # noqa: S101 - for mypy
    batch = read_files([str(recording)], Fields.of(bundle.manifest.input, bundle.manifest.channels))
    label = batch.label_codes(bundle.manifest.classes.labels)
    return Measured(
        seconds=trained["seconds"],
        memory_bytes=trained["memory_bytes"],
        rate=predictions.rate,
        runtime_bytes=predictions.memory_bytes,
        state_bytes=4 * bundle.manifest.state_size,
        accuracy=accuracy(predictions.outputs, predictions.scorable, label),
    )
