"""`tflite-int8`: 8-bit products, calibrated on the training part, scored on the test part, rejected over a limit."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="quantizing needs the train extra")

from ai_edge_litert.interpreter import Interpreter, OpResolverType
from click.testing import CliRunner

from stream_gru.cli.group import cli
from stream_gru.config import SplitConfig, load_config
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import ConfigError, ParityError
from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32
from stream_gru.examples.simulators.write import write_pumps
from stream_gru.model.bundle import Bundle, load_bundle
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.export.formats import ExportRequest, export
from stream_gru.training import int8_export
from stream_gru.training.int8_export import Limit, bounded, int8_files, score, split_keys
from stream_gru.training.quantize import StepEngine, calibration_pairs, quantized_step
from stream_gru.training.splits import Segment
from tests.support.batches import batch
from tests.support.models import make_bundle, random_inputs
from tests.support.paths import BUNDLE, SAMPLE_DATA

pytestmark = pytest.mark.train


@dataclass(frozen=True)
class Made:
    """What one export wrote, and what it takes to export again."""

    request: ExportRequest
    content: bytes
    report: dict[str, Any]
    lines: list[str]
    config: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The sample bundle, quantized on half an hour of other pumps."""
    folder = tmp_path_factory.mktemp("pumps")
    write_pumps(folder, hours=0.5, seed=5, pumps=3)
    text = (SAMPLE_DATA / "pump.toml").read_text()
    text = text.replace('["train/*.csv.gz", "held_out/*.csv.gz"]', '["pump-*.csv"]')
    text = text.replace('"pump-6"', '"pump-2"').replace('["pump-7", "pump-8"]', '["pump-3"]')
    (folder / "pump.toml").write_text(text)
    lines: list[str] = []
    config = load_config(folder / "pump.toml", CATALOG)
    request = ExportRequest(load_bundle(BUNDLE), config, report=lines.append, config_name=str(folder / "pump.toml"))
    out = folder / "pump.int8.tflite"
    export(request, "tflite-int8", out)
    report = json.loads((folder / "pump.int8.tflite.json").read_text())
    return Made(request, out.read_bytes(), report, lines, folder / "pump.toml")


def test_the_report_holds_what_was_measured(made: Made) -> None:
    """The report has the file's hash and size, and scores that the stored flatbuffer reproduces."""
    bundle, report = made.request.bundle, made.report
    assert report["sha256"] == hashlib.sha256(made.content).hexdigest()
    assert report["bytes"] == len(made.content)
    assert (report["model_id"], report["format"]) == (bundle.manifest.model_id, "tflite-int8")
    rows = int8_export._splits(bundle, made.request.config).test
    again = score(bundle, rows, StepEngine(bundle.manifest, made.content))
    plain = score(bundle, rows, "litert")
    assert report["int8"] == msgspec.to_builtins(again)
    assert report["float32"] == msgspec.to_builtins(plain)
    assert plain.accuracy is not None
    assert again.accuracy is not None
    assert report["accuracy_points_lost"] == pytest.approx(100 * (plain.accuracy - again.accuracy))
    assert report["rows"] == report["test_rows"] == len(rows)
    assert report["calibration_rows"] == 1000
    assert report["within_limit"]
    assert {"tensorflow", "ai-edge-litert"} <= set(report["versions"])


def test_both_scores_and_the_loss_are_printed(made: Made) -> None:
    """Accuracy, forecast error and size of both models are printed."""
    accuracy = f"float32 {made.report['float32']['accuracy']:.2%}, int8 {made.report['int8']['accuracy']:.2%}"
    assert any(accuracy in line for line in made.lines), made.lines
    assert any(f"{made.report['int8']['mae_scaled']:.5f}" in line for line in made.lines)
    assert any(f"{len(made.content):,} bytes" in line for line in made.lines)


def test_the_file_is_a_third_of_the_flatbuffer(made: Made) -> None:
    """Weights take a quarter of the bytes; the rest is the graph."""
    assert made.request.bundle.tflite is not None
    assert len(made.content) < len(made.request.bundle.tflite) / 3


def test_a_loss_over_the_limit_is_rejected(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A damaged quantization writes nothing; with force it is written and the report says that it exceeds the limit."""
    monkeypatch.setattr(int8_export, "quantized_step", damaged)
    out = tmp_path / "pump.tflite"
    with pytest.raises(ParityError, match=r"exceeds the limit \(accuracy -1 points, forecast error \+5%, "):
        export(made.request, "tflite-int8", out)
    assert not list(tmp_path.iterdir())
    forced = ExportRequest(made.request.bundle, made.request.config, force=True)
    export(forced, "tflite-int8", out)
    report = json.loads((tmp_path / "pump.tflite.json").read_text())
    assert not report["within_limit"]
    assert report["accuracy_points_lost"] > 1
    assert report["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()


def damaged(manifest: Any, weights: dict[str, F32], x: F32, h: F32) -> bytes:
    """A step calibrated on states that are too small, so that the real ones are cut off."""
    return quantized_step(manifest, weights, x, h * np.float32(0.1))


@pytest.mark.parametrize("limit", [Limit(accuracy_points=-100.0), Limit(scaled_error=-1.0)])
def test_each_head_has_its_own_limit(made: Made, monkeypatch: pytest.MonkeyPatch, limit: Limit) -> None:
    """One exceeded limit is enough."""
    monkeypatch.setattr(int8_export, "quantized_step", lambda *_: made.content)
    assert set(int8_files(made.request)) == {"", ".json"}
    with pytest.raises(ParityError, match="nothing was written"):
        int8_files(made.request, limit)


@pytest.mark.parametrize(("column", "kind"), [(-1, "rows with a class"), (4, "forecasts")])
def test_missing_predictions_are_no_gain(
    made: Made, monkeypatch: pytest.MonkeyPatch, column: int, kind: str
) -> None:  # fmt: skip
    """A model without a finite prediction in some rows is rejected, however good the others are."""

    class Silent(StepEngine):
        """Returns NaN where the class is uncertain."""

        def step(self, x: F32, h: F32) -> tuple[F32, F32]:
            y, state = super().step(x, h)
            y[y[:, bundle.manifest.forecast_size :].max(axis=1) < 0.7, column] = np.nan
            return y, state

        def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
            y, state = super().scan(x, h)
            y[y[:, bundle.manifest.forecast_size :].max(axis=1) < 0.7, column] = np.nan
            return y, state

    bundle = made.request.bundle
    monkeypatch.setattr(int8_export, "quantized_step", lambda *_: made.content)
    monkeypatch.setattr(int8_export, "StepEngine", Silent)
    lines: list[str] = []
    request = replace(made.request, report=lines.append)
    with pytest.raises(ParityError, match="no fewer predictions"):
        int8_files(request, Limit(accuracy_points=100.0, scaled_error=1e9))
    assert any(line.startswith(f"{kind} scored: float32 ") for line in lines), lines
    report = json.loads(int8_files(replace(request, force=True))[".json"])
    assert report["accuracy_points_lost"] < 0  # looks better


def test_the_recordings_and_the_split_are_named(made: Made) -> None:
    """The report and the printed lines name the recordings and the split."""
    assert made.request.config is not None
    assert made.report["split"] == msgspec.to_builtins(made.request.config.split)
    assert made.report["recordings"] == [str(made.config.parent / "pump-*.csv")]
    assert made.report["config"] == str(made.config)
    keys = 'by = "stream", validation_streams = ["pump-2"], test_streams = ["pump-3"]'
    words = f"recordings: {made.config.parent / 'pump-*.csv'}, split by {keys} of {made.config};"
    assert any(line.startswith(words) for line in made.lines), made.lines
    assert split_keys(SplitConfig(until="2024-01-01")) == (
        'by = "time", validation = 0.15, test = 0.15, until = "2024-01-01"'
    )


def test_a_test_part_without_truth_is_rejected(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without labels in the test part the loss cannot be measured."""
    assert made.request.config is not None
    monkeypatch.setattr(int8_export, "quantized_step", lambda *_: made.content)
    unlabelled = msgspec.structs.replace(
        made.request.config, input=msgspec.structs.replace(made.request.config.input, label="")
    )
    with pytest.raises(ParityError, match="no truth to measure it"):
        int8_files(ExportRequest(made.request.bundle, unlabelled))


def test_the_configuration_of_another_model_is_rejected(made: Made) -> None:
    """Channels must be those of the bundle."""
    other = make_bundle(channels=2)
    with pytest.raises(ConfigError, match="expected the configuration of this model, with the channels c0, c1 every"):
        int8_files(ExportRequest(other, made.request.config))
    with pytest.raises(ConfigError, match="expected the training configuration"):
        int8_files(ExportRequest(other))


def test_the_command_fails_with_exit_code_1(
    made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:  # fmt: skip
    """`stream-gru export` shows the scores, then the error; `--force` writes."""
    monkeypatch.setattr(int8_export, "quantized_step", damaged)
    out = tmp_path / "pump.tflite"
    arguments = ["export", str(BUNDLE), "--format", "tflite-int8", "--config", str(made.config)]
    done = CliRunner().invoke(cli, [*arguments, "--out", str(out)])
    assert isinstance(done.exception, ParityError)  # exit code 1
    assert "accuracy: float32" in done.stdout
    assert f" of {made.config};" in done.stdout
    assert not out.exists()
    done = CliRunner().invoke(cli, [*arguments, "--out", str(out), "--force"])
    assert done.exit_code == 0
    assert f"wrote {out}, {out.stat().st_size:,} bytes" in done.stdout


NETWORKS: dict[str, dict[str, Any]] = {
    "stacked_lstm": {"cell": "lstm", "units": (8, 5)},
    "categories_logistic": {"categories": (5, 4), "embedding": 3, "labels": 2, "class_activation": "logistic"},
    "calendar_before": {"calendar": 1, "reset_after": False, "class_activation": "sigmoid"},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_products_are_int8_and_nothing_else_is(network: str) -> None:
    """Every matrix product works on int8, every other operation on float32, as the report says."""
    bundle = make_bundle(**NETWORKS[network])
    x, h, y = streamed(bundle, 200)
    content = quantized_step(bundle.manifest, bundle.weights, x, h)
    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_content=content, experimental_op_resolver_type=plain)
    types = {tensor["index"]: tensor["dtype"] for tensor in interpreter.get_tensor_details()}
    made: Counter[tuple[str, bool]] = Counter()
    for operation in interpreter._get_ops_details():
        made[operation["op_name"], types[operation["outputs"][0]] is np.int8] += 1
    in_int8 = {name for name, is_int8 in made if is_int8}
    assert in_int8 == {"FULLY_CONNECTED", "QUANTIZE"}
    assert not made["FULLY_CONNECTED", False]
    found, _ = StepEngine(bundle.manifest, content).scan(x, np.zeros(h.shape[1], np.float32))
    assert np.abs(found - y).max() < 0.05 * np.ptp(y)


def streamed(bundle: Bundle, steps: int) -> tuple[F32, F32, F32]:
    """Samples (T, I), the states before them (T, S) and the engine's outputs (T, K)."""
    engine = load_engine("numpy", bundle)
    x = random_inputs(bundle.manifest, steps) / np.float32(4)
    for part in bundle.manifest.categorical:
        x[:, part.index] = np.arange(steps) % part.categories
    states, outputs, h = [], [], engine.initial_state(1)
    for row in x:
        states.append(h[0])
        y, h = engine.step(row[None], h)
        outputs.append(y[0])
    return x, np.stack(states), np.stack(outputs)


def test_step_and_scan_of_the_adapter_agree(made: Made) -> None:
    """Rows of a step are separate streams, steps of a scan follow each other."""
    manifest = made.request.bundle.manifest
    engine: Engine = StepEngine(manifest, made.content)
    x = random_inputs(manifest, 6)
    y, h = engine.scan(x, engine.initial_state(1)[0])
    state, rows = engine.initial_state(1), []
    for row in x:
        out, state = engine.step(row[None], state)
        rows.append(out[0])
    np.testing.assert_array_equal(np.stack(rows), y)
    np.testing.assert_array_equal(state[0], h)
    twice, _ = engine.step(np.stack([x[0], x[0]]), engine.initial_state(2))
    np.testing.assert_array_equal(twice, np.stack([y[0], y[0]]))


def make_segment(rows: int, seed: int) -> Segment:
    """A segment of random samples of three channels."""
    x = np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)
    zeros = np.zeros(rows, np.int64)
    return Segment("s", zeros, x, np.ones((rows, 3), np.bool_), zeros.astype(np.int32))


@pytest.mark.parametrize("window", [0, 10])
def test_calibration_states_are_those_of_the_stream(window: int) -> None:
    """Each pair is a sample and the state before it when its segment is streamed from its last reset."""
    engine = load_engine("numpy", make_bundle())
    segments = [make_segment(35, 1), make_segment(50, 2)]
    xs, hs, steps = calibration_pairs(engine, segments, window, pairs=20, steps=1000)
    assert (len(xs), steps) == (20, 85)
    expected = {}
    for segment in segments:
        h = engine.initial_state(1)
        for index, row in enumerate(segment.x):
            h = engine.initial_state(1) if window and index % window == 0 else h
            expected[row.tobytes()] = h[0]
            _, h = engine.step(row[None], h)
    for x, h in zip(xs, hs, strict=True):
        np.testing.assert_allclose(h, expected[x.tobytes()], atol=1e-6)


def test_calibration_is_bounded_and_repeats_itself() -> None:
    """No more pairs and steps than asked for, and the same ones every time."""
    engine = load_engine("numpy", make_bundle())
    segments = [make_segment(60, seed) for seed in range(5)]
    first, second = (calibration_pairs(engine, segments, 0, pairs=10, steps=90) for _ in range(2))
    assert (len(first[0]), first[2]) == (10, 90)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


def test_scored_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal numbers of rows from the start of each stream, in order of arrival; of many streams some have none."""
    rows = batch(["a", "b"] * 50 + ["a"] * 100, list(range(200)))
    monkeypatch.setattr(int8_export, "_MIN_ROWS_PER_STREAM", 10)
    part = bounded(replace(rows, stream_names=(*rows.stream_names, "another part's")), 60)
    assert np.bincount(part.stream_index).tolist() == [30, 30]
    assert part.time_ns.tolist() == rows.time_ns[:60].tolist()
    monkeypatch.setattr(int8_export, "_MIN_ROWS_PER_STREAM", 60)
    assert sorted(np.bincount(bounded(rows, 60).stream_index, minlength=2).tolist()) in ([0, 60], [10, 50])
    assert bounded(rows, 200) is rows
