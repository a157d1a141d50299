"""From recordings to a bundle, as `stream-gru train` does it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from stream_gru.cli.group import cli
from stream_gru.config import Config, load_config
from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import BundleError, ConfigError, StreamGruError
from stream_gru.core.types import SampleBatch
from stream_gru.examples.simulators.write import write_pumps, write_sines
from stream_gru.model.bundle import Bundle, load_bundle
from stream_gru.pipeline.pipeline import Pipeline

pytest.importorskip("tensorflow")
pytestmark = pytest.mark.train

PUMPS = """
[input]
stream = "pump"
label = "mode"
[[channel]]
name = "flow"
unit = "L/min"
[[channel]]
name = "vibration"
min = 0
max = 100
[data]
files = ["*.csv"]
period_s = 1.0
[split]
validation = 0.2
test = 0.2
[[model.layer]]
cell = "gru"
units = 8
[model]
calendar = ["minute_of_hour"]
[model.forecast]
targets = ["flow"]
horizon = 5
{forecast}
[model.classes]
activation = "{activation}"
class_weights = "balanced"
[training]
batch_size = 8
bptt_steps = 32
epochs = {epochs}
learning_rate = 0.01
{training}
"""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pumps for half an hour, with data faults."""
    folder = tmp_path_factory.mktemp("pumps")
    write_pumps(folder, hours=0.5, seed=3, pumps=2)
    return folder


def train_files(
    folder: Path, name: str, *options: str, epochs: int = 2, forecast: str = "", training: str = "",
    activation: str = "softmax",
) -> Bundle:  # fmt: skip
    """Train by the command line, in this process, and return the bundle."""
    text = PUMPS.format(epochs=epochs, forecast=forecast, training=training, activation=activation)
    (folder / f"{name}.toml").write_text(text)
    arguments = ["train", str(folder / f"{name}.toml"), "--out", str(folder / f"{name}.bundle"), *options]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return load_bundle(folder / f"{name}.bundle")


@pytest.fixture(scope="module")
def trained(recordings: Path) -> Bundle:
    """A small model of both heads."""
    return train_files(recordings, "small")


def test_a_bundle_is_complete(trained: Bundle) -> None:
    """The bundle has its calibration, parity of all engines, scores beside baselines, hashes and report."""
    manifest = trained.manifest
    assert manifest.regime == "stateful"
    assert [channel.name for channel in manifest.channels] == ["flow", "vibration"]
    assert manifest.calibration is not None
    assert {"litert", "numpy"} <= {entry.engine.split()[0] for entry in manifest.parity}
    assert all(entry.max_difference <= entry.tolerance for entry in manifest.parity)
    forecast = manifest.scores["forecast"]
    assert isinstance(forecast, dict)
    assert {"persistence", "linear_ar"} <= set(forecast["baselines"])
    assert set(manifest.files) == {"weights.npz", "model.tflite", "model.keras", "report.html"}
    assert not (trained.path.parent / "small.bundle.work").exists()


def test_streamed_equals_the_whole_sequence_in_plain_keras(trained: Bundle, recordings: Path) -> None:
    """``model.keras`` loads in plain Keras, and its output for a whole sequence is that of the streamed engine."""
    import keras

    model = keras.models.load_model(trained.path / "model.keras")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, trained.manifest.input_size)).astype(np.float32)
    whole = np.asarray(model(x[None], training=False))[0]
    engine = Pipeline(trained, "litert").engine
    streamed, _ = engine.scan(x, engine.initial_state(1)[0])
    units = np.ones(whole.shape[1])
    units[:5] = trained.weights["scaling/scale"][0]
    assert np.abs((streamed - whole) / units).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("windowed", {"training": 'regime = "windowed"\nwindow = 20\nstride = 10\nwindow_loss = "last"'}),
        ("quantiles", {"forecast": "quantiles = [0.1, 0.5, 0.9]", "activation": "sigmoid"}),
    ],
)
def test_other_models_stream_too(
    trained: Bundle, recordings: Path, name: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """Each choice of regime, loss and head gives another bundle that the pipeline runs."""
    monkeypatch.setattr("stream_gru.training.train._PARITY_STEPS", 1024)
    bundle = train_files(recordings, name, epochs=1, **options)
    assert bundle.manifest.model_id != trained.manifest.model_id
    pipeline = Pipeline(bundle)
    for second in range(25):
        out = pipeline.push("p", float(second), {"flow": 100.0, "vibration": 1.5})
    assert out.forecast is not None
    assert out.interval is not None
    low, high = out.interval["flow"][0]
    assert low <= out.forecast["flow"][0] <= high
    if name == "windowed":
        assert (out.steps, out.status) == (5, "warming 5/19")
    else:
        assert isinstance(out.label, list)


def test_ctrl_c_keeps_the_best_so_far_and_writes_the_bundle(recordings: Path) -> None:
    """An interrupted training writes a bundle with the best weights so far."""
    text = PUMPS.format(epochs=500, forecast="", training="patience = 500", activation="softmax")
    (recordings / "long.toml").write_text(text)
    arguments = ["train", str(recordings / "long.toml"), "--out", str(recordings / "long.bundle")]
    process = subprocess.Popen(
        [sys.executable, "-m", "stream_gru", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may have inherited that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert "stopped by: interrupted" in errors
    assert "continue with the same command and --resume" in errors
    load_bundle(recordings / "long.bundle")
    assert (recordings / "long.bundle.work" / "checkpoint.json").exists()


def test_ctrl_c_before_the_first_validation_keeps_the_older_bundle(trained: Bundle, recordings: Path) -> None:
    """In the first epoch there are no best weights yet: exit 130, and the older bundle is not replaced."""
    (recordings / "first.toml").write_text(PUMPS.format(epochs=9, forecast="", training="", activation="softmax"))
    shutil.copytree(trained.path, recordings / "first.bundle")
    process = subprocess.Popen(
        [sys.executable, "-m", "stream_gru", "train", str(recordings / "first.toml"), "--out",
         str(recordings / "first.bundle")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if line.startswith("split:"):
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.endswith("stream-gru: interrupted\n")
    assert "Traceback" not in errors
    for file in trained.path.iterdir():
        assert (recordings / "first.bundle" / file.name).read_bytes() == file.read_bytes()
    assert not (recordings / "first.bundle.work").exists()


def test_a_killed_training_resumes(trained: Bundle, recordings: Path) -> None:
    """After kill -9 ``--resume`` continues from the last epoch and gives the model of a training without a kill.

    One epoch runs in another process and one in this one: the same seed gives the same bits in every process.
    """
    shutil.copy(recordings / "small.toml", recordings / "killed.toml")
    arguments = ["train", str(recordings / "killed.toml"), "--out", str(recordings / "killed.bundle")]
    process = subprocess.Popen(
        [sys.executable, "-m", "stream_gru", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if line.startswith("epoch 1/"):
                process.kill()
                break
    assert not (recordings / "killed.bundle").exists()
    assert (recordings / "killed.bundle.work" / "checkpoint.json").exists()
    assert train_files(recordings, "killed", "--resume").manifest.model_id == trained.manifest.model_id


@pytest.fixture
def rejected(tmp_path: Path) -> Callable[..., str]:
    """Run ``train``, which must fail before it reads a recording (there is none), and return the error."""
    (tmp_path / "c.toml").write_text(PUMPS.format(epochs=1, forecast="", training="", activation="softmax"))

    def run(*options: object) -> str:
        done = CliRunner().invoke(cli, ["train", str(tmp_path / "c.toml"), *map(str, options)])
        error = done.exception
        if isinstance(error, StreamGruError):
            assert isinstance(error, BundleError | ConfigError)  # exit code 2
            return str(error)
        assert done.exit_code == 2, done.output
        return done.stderr

    return run


def test_invalid_options_are_rejected_before_training(rejected: Callable[..., str], tmp_path: Path) -> None:
    """An unusable target, a missing checkpoint and a seed too large are errors before the first epoch."""
    for out in (".", "/", tmp_path / "c.toml"):
        assert "expected a new path or an older bundle to replace" in rejected("--out", out)
    assert "expected a checkpoint at" in rejected("--out", tmp_path / "x.bundle", "--resume")
    assert "'--seed'" in rejected("--out", tmp_path / "x.bundle", "--seed", 5_000_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


def test_a_model_too_large_for_a_bundle_is_rejected_before_training(
    trained: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the key to change."""
    from stream_gru.training import train as module

    module._check_size(trained.manifest)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 300_000)
    module._check_size(trained.manifest)
    large = [msgspec.structs.replace(trained.manifest.layers[0], units=512)]
    with pytest.raises(ConfigError, match=r"model\.layer\.units \(now 512\): expected .* at most 300,000 bytes"):
        module._check_size(msgspec.structs.replace(trained.manifest, layers=large))


def test_recordings_of_every_format_are_read_as_the_same_rows(tmp_path: Path) -> None:
    """CSV, gzipped JSON lines and Parquet of the same rows give training the same batch, so the same model."""
    import gzip

    import pyarrow.csv
    from pyarrow import parquet

    config = (
        '[input]\nstream = "stream"\n[[channel]]\nname = "x"\n[data]\nfiles = ["{name}"]\nperiod_s = 1.0\n'
        "[[model.layer]]\nunits = 4\n[model.forecast]\nhorizon = 2\n"
    )
    (csv,) = write_sines(tmp_path, hours=0.2, seed=1, streams=1)
    table = pyarrow.csv.read_csv(csv, convert_options=pyarrow.csv.ConvertOptions(column_types={"time": "string"}))
    parquet.write_table(table, tmp_path / "p.parquet")
    with gzip.open(tmp_path / "j.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
    batches = []
    for name in (csv.name, "p.parquet", "j.jsonl.gz"):
        (tmp_path / "c.toml").write_text(config.format(name=name))
        batches.append(read_training_data(load_config(tmp_path / "c.toml", CATALOG)))
    first = batches[0]
    assert len(first) == 720
    for other in batches[1:]:
        assert other.stream_names == first.stream_names
        for field in ("stream_index", "time_ns", "values"):
            np.testing.assert_array_equal(getattr(other, field), getattr(first, field))


def read_training_data(config: Config) -> SampleBatch:
    """The recordings of a configuration, as `training.train` reads them."""
    assert config.data is not None
    return read_files(config.data.files, Fields.of(config.input, config.channel))


def test_without_the_training_extra_the_message_names_the_package(tmp_path: Path) -> None:
    """Without TensorFlow `train` fails with exit code 2 and names the package."""
    (tmp_path / "c.toml").write_text(PUMPS.format(epochs=1, forecast="", training="", activation="softmax"))
    code = (
        "import sys\nsys.modules['tensorflow'] = None\nsys.modules['keras'] = None\n"
        f"from stream_gru.cli.main import run_cli\nsys.exit(run_cli(['train', '{tmp_path}/c.toml', '--out', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'stream-gru[train]'" in done.stderr
