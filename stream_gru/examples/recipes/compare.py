"""Comparison of ``stateful``, ``unroll``, the regime and the cell: one network trained in several ways on MNIST.

Each is trained in a process of its own, whose memory is measured, and streams the test part in another process.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.examples.recipes.recipe import Variant, merged
from stream_gru.examples.recipes.results import accuracy
from stream_gru.examples.recipes.run import CONFIG, RECORDINGS, prepare, stream_in_process
from stream_gru.model.bundle import load_bundle
from stream_gru.model.text_table import table

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
    worker = "stream_gru.examples.recipes.train_worker"
    command = [sys.executable, "-m", worker, str(config), str(folder / "bundle"), str(report)]
    subprocess.run(command, check=True)  # noqa: S603 - our own module on our own files
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
