"""Carry out a recipe: recordings, configuration, training, then the test part streamed and by Keras, side by side.

    maker ──▶ recordings/*.parquet ─┐
    recipe ─▶ recipe.toml ──────────┴▶ train ──▶ bundle ──┬▶ a process of the runtime ──▶ streamed answers ─┐
                                                          └▶ Keras' model.predict ─────▶ batch answers ─────┴▶ lines

Everything between the maker and the lines is the product as any sensor uses it: ``recipe.toml`` and the recordings
stay, and ``stream-gru train recipe.toml`` trains the same model again.
"""

from __future__ import annotations

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
from stream_gru.connectors.dataset_reader import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.core.errors import BundleError, ConfigError, ParityError
from stream_gru.core.types import F64, SampleBatch
from stream_gru.examples.recipes.recipe import Recipe, Variant
from stream_gru.examples.recipes.results import Answers, Outcome, load_answers
from stream_gru.examples.recipes.sequences import write_recording
from stream_gru.examples.recipes.stream_worker import BATCH_ROWS
from stream_gru.model.bundle import Bundle
from stream_gru.model.explain import parameter_rows
from stream_gru.model.parity import CARRIED_TOLERANCE
from stream_gru.pipeline.conditioning.gap_filling import Steps
from stream_gru.pipeline.pipeline import conditioning_spec
from stream_gru.training.evaluation.evaluate import forecast_truth, stretches_of_time
from stream_gru.training.keras_predict import batch_answers
from stream_gru.training.progress import Reporter
from stream_gru.training.splits import condition_all
from stream_gru.training.train import Trained, train

DEVICES = 256
CONFIG, RECORDINGS, BUNDLE = "recipe.toml", "recordings", "bundle"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Done:
    """What a run has left and found."""

    outcome: Outcome
    lines: list[str]


def prepare(variant: Variant, out: Path, place: Path | None, say: Say) -> Config:
    """Write recordings and configuration to ``out``.  Raises DataError, ConfigError."""
    table = variant.table
    text = f"# {table.title}\n{tomli_w.dumps(variant.document)}"
    _check_folder(out, text)
    maker, options = _maker(variant)
    parts = maker.recordings(options, place)
    document = variant.document
    channels = [channel["name"] for channel in document["channel"]]
    period_s = document["data"]["period_s"]
    for part, sequences in parts.items():
        path = out / RECORDINGS / f"{part}.parquet"
        devices = min(DEVICES, len(sequences.length))
        write_recording(path, part, sequences, channels, maker.LABELS, period_s, devices)
        say(f"wrote {path}: {len(sequences.length):,} sequences, {len(sequences.values):,} samples")
    (out / CONFIG).write_text(text)
    return load_config(out / CONFIG)


def run_recipe(recipe: Recipe, variant: Variant, out: Path, place: Path | None, reporter: Reporter, say: Say) -> Done:
    """Carry a recipe out in the folder ``out``.  Raises what `prepare` and `train` raise, KeyboardInterrupt."""
    config = prepare(variant, out, place, say)
    trained = train(config, out / BUNDLE, out / f"{BUNDLE}.work", reporter, say)
    if trained.fitted.stopped == "interrupted":
        say(f"interrupted: {trained.bundle.path} is what was learnt until then; its test part is not streamed")
        raise KeyboardInterrupt
    shutil.rmtree(out / f"{BUNDLE}.work", ignore_errors=True)
    outcome = measure(trained, config, out, say)
    maker, options = _maker(variant)
    lines = [*_lines(recipe, variant, outcome), *maker.findings(options, outcome)]
    return Done(outcome, lines)


def measure(trained: Trained, config: Config, out: Path, say: Say) -> Outcome:
    """Answer the test part by the runtime in a process of its own, and by Keras.  ParityError where they differ."""
    bundle, path = trained.bundle, out / RECORDINGS / "test.parquet"
    say("streaming the test part through the runtime (litert, no TensorFlow), then through Keras")
    streamed = stream_apart(bundle.path, path)
    batch = read_files([str(path)], Fields.of(bundle.manifest.input, bundle.manifest.channels))
    steps = condition_all(batch, conditioning_spec(bundle.manifest))
    y, seconds = batch_answers(bundle, steps, config.training.batch_size)
    by_row = np.empty_like(y)
    by_row[steps.row] = y
    truth = np.empty((len(y), len(bundle.manifest.target_index)))
    truth[steps.row] = _last_truth(bundle, steps)
    outcome = Outcome(
        bundle=bundle,
        history=trained.fitted.history,
        streamed=streamed,
        batch=Answers(by_row, streamed.trusted, seconds, 0),
        label=_labels(bundle, batch),
        truth=truth,
    )
    if not outcome.largest_difference <= CARRIED_TOLERANCE:
        raise ParityError(
            f"streamed and batch answers differ by {outcome.largest_difference:.3g} in scaled units,"
            f" more than {CARRIED_TOLERANCE:g}"
        )
    return outcome


def stream_apart(bundle: Path, recording: Path) -> Answers:
    """Stream a recording in a fresh process (`stream_gru.examples.recipes.stream_worker`)."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "answers.npz"
        worker = "stream_gru.examples.recipes.stream_worker"
        command = [sys.executable, "-m", worker, str(bundle), str(recording), str(target)]
        subprocess.run(command, check=True)  # noqa: S603 - our own module on our own files
        return load_answers(target)


def _check_folder(out: Path, text: str) -> None:
    """A folder is used again by the same recipe in the same variant, by nothing else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / CONFIG).is_file() or (out / CONFIG).read_text() != text:
        raise BundleError(f"{out}: expected a new folder or that of the same recipe, found something else; see --out")


def _maker(variant: Variant) -> tuple[Any, Any]:
    """The module that makes the recordings, and what it is asked for.  Raises ConfigError."""
    maker = import_module(f"stream_gru.examples.recipes.{variant.table.data}")
    try:
        return maker, msgspec.convert(variant.table.options, maker.Options)
    except msgspec.ValidationError as error:
        raise ConfigError(f"recipe.options: {error}") from error


def _labels(bundle: Bundle, batch: SampleBatch) -> Any:
    classes = bundle.manifest.classes
    return batch.label_codes(classes.labels) if classes else np.full(len(batch), -1, np.int32)


def _last_truth(bundle: Bundle, steps: Steps) -> F64:
    """(T, D): what each target was the longest horizon later."""
    head, targets = bundle.manifest.forecast, bundle.manifest.target_index
    if head is None:
        return np.empty((len(steps), 0))
    return forecast_truth(steps, targets, head.horizon, stretches_of_time(steps))[:, :, -1]


def _lines(recipe: Recipe, variant: Variant, outcome: Outcome) -> Iterator[str]:
    manifest = outcome.bundle.manifest
    yield f"{recipe.name}: {variant.table.title}"
    yield f"tutorial     {variant.table.tutorial}"
    for row in parameter_rows(outcome.bundle):
        formula, number, count = row["formula"], row["by_formula"], row["by_count"]
        yield f"parameters   {row['layer']}: {formula}: {number:,} by formula, {count:,} by count"
    epoch = max(row["epoch"] for row in outcome.history)
    yield f"training     {epoch:g} epochs, {sum(row['seconds'] for row in outcome.history):.0f} s"
    how = f"through the runtime, litert, {BATCH_ROWS:,} samples at a time"
    ways = (("streamed", how, outcome.streamed), ("Keras", "model.predict", outcome.batch))
    for name, how, answers in ways:
        yield f"{name:<12} {_score(outcome, answers)}; {answers.rate:,.0f} samples/s ({how})"
    outputs = outcome.streamed.outputs.size
    yield f"difference   {outcome.largest_difference:.2g} at most in scaled units, over {outputs:,} outputs"
    memory = outcome.streamed.memory_bytes / 2**20
    yield f"memory       {4 * manifest.state_size:,} bytes of state a stream; the process {memory:.0f} MiB at its peak"


def _score(outcome: Outcome, answers: Answers) -> str:
    if outcome.bundle.manifest.classes is not None:
        return f"test accuracy {outcome.accuracy_of(answers):.2%}"
    return f"test MSE {outcome.mean_squared_error_of(answers):.5f}, {outcome.horizon} steps ahead"
