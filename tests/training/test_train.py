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

from stream_gru.core.errors import ConfigError
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
    """Train by the command line and return the bundle."""
    text = PUMPS.format(epochs=epochs, forecast=forecast, training=training, activation=activation)
    (folder / f"{name}.toml").write_text(text)
    arguments = ["train", str(folder / f"{name}.toml"), "--out", str(folder / f"{name}.bundle"), *options]
    done = subprocess.run([sys.executable, "-m", "stream_gru", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_bundle(folder / f"{name}.bundle")


@pytest.fixture(scope="module")
def trained_once(recordings: Path) -> Bundle:
    """A small model of both heads."""
    return train_files(recordings, "small")


def test_a_bundle_says_everything_about_its_model(trained: Bundle) -> None:
    """Contract, calibration, parity of all engines, scores beside baselines, hashes and report are there."""
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
    """``model.keras`` loads in plain Keras, and its answer to a whole sequence is that of the streamed engine."""
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


def test_a_seed_repeats_a_training(trained: Bundle, recordings: Path) -> None:
    """The same configuration gives the same model, to the bit; another seed another one."""
    again = train_files(recordings, "again")
    other = train_files(recordings, "other", "--seed", "7")
    assert again.manifest.model_id == trained.manifest.model_id != other.manifest.model_id


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("windowed", {"training": 'regime = "windowed"\nwindow = 20\nstride = 10\nwindow_loss = "last"'}),
        ("quantiles", {"forecast": "quantiles = [0.1, 0.5, 0.9]"}),
        ("sigmoid", {"activation": "sigmoid"}),
    ],
)
def test_other_models_stream_as_well(recordings: Path, name: str, options: dict[str, str]) -> None:
    """Regime, loss and heads can be chosen; every choice gives a bundle that the pipeline runs."""
    bundle = train_files(recordings, name, epochs=1, **options)
    pipeline = Pipeline(bundle)
    for second in range(25):
        out = pipeline.push("p", float(second), {"flow": 100.0, "vibration": 1.5})
    assert out.forecast is not None
    assert out.interval is not None
    low, high = out.interval["flow"][0]
    assert low <= out.forecast["flow"][0] <= high
    if name == "windowed":
        assert (out.steps, out.status) == (5, "warming 5/19")
    if name == "sigmoid":
        assert isinstance(out.label, list)


def test_ctrl_c_keeps_the_best_so_far_and_writes_the_bundle(recordings: Path) -> None:
    """An interrupted training ends with a bundle of what it had found."""
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


def test_ctrl_c_before_anything_was_learnt_leaves_the_older_bundle(trained: Bundle, recordings: Path) -> None:
    """In the first epoch there is no best so far: exit 130, and a good bundle is not replaced by random weights."""
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


def test_a_training_that_was_killed_goes_on_where_it_was(recordings: Path) -> None:
    """After kill -9 ``--resume`` continues from the last epoch and ends with the model of an unbroken training."""
    text = PUMPS.format(epochs=6, forecast="", training="patience = 50", activation="softmax")
    (recordings / "broken.toml").write_text(text)
    arguments = ["train", str(recordings / "broken.toml"), "--out", str(recordings / "broken.bundle")]
    process = subprocess.Popen(
        [sys.executable, "-m", "stream_gru", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if line.startswith("epoch 3/"):
                process.kill()
                break
    assert not (recordings / "broken.bundle").exists()
    resumed = train_files(recordings, "broken", "--resume", epochs=6, training="patience = 50")
    unbroken = train_files(recordings, "unbroken", epochs=6, training="patience = 50")
    assert resumed.manifest.model_id == unbroken.manifest.model_id


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Segment ``train``; it must refuse with exit 2 before it reads a recording (there is none), and say why."""
    (tmp_path / "c.toml").write_text(PUMPS.format(epochs=1, forecast="", training="", activation="softmax"))

    def run(*options: object) -> str:
        arguments = [sys.executable, "-m", "stream_gru", "train", str(tmp_path / "c.toml"), *map(str, options)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    return run


def test_what_cannot_end_well_is_refused_before_it_begins(refused: Callable[..., str], tmp_path: Path) -> None:
    """A target that is something else, a checkpoint that is not there and a seed too large cost no epoch."""
    for out in (".", "/", tmp_path / "c.toml"):
        assert "expected a new path or an older bundle to replace" in refused("--out", out)
    assert "expected a checkpoint at" in refused("--out", "x.bundle", "--resume")
    assert "'--seed'" in refused("--out", "x.bundle", "--seed", 5_000_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["c.toml"]


def test_a_model_too_large_for_a_bundle_is_refused_before_the_first_epoch(
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


def test_recordings_of_every_form_train_alike(tmp_path: Path) -> None:
    """CSV, gzipped JSON lines and Parquet of the same rows give the same model."""
    import gzip

    import pyarrow.csv
    from pyarrow import parquet

    config = (
        '[input]\nstream = "stream"\n[[channel]]\nname = "x"\n[data]\nfiles = ["{name}"]\nperiod_s = 1.0\n'
        "[[model.layer]]\nunits = 4\n[model.forecast]\nhorizon = 2\n[training]\nepochs = 1\nlanes = 4\nsteps = 16\n"
    )
    (csv,) = write_sines(tmp_path, hours=0.2, seed=1, streams=1)
    table = pyarrow.csv.read_csv(csv, convert_options=pyarrow.csv.ConvertOptions(column_types={"time": "string"}))
    parquet.write_table(table, tmp_path / "p.parquet")
    with gzip.open(tmp_path / "j.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
    models = set()
    for name in (csv.name, "p.parquet", "j.jsonl.gz"):
        (tmp_path / "c.toml").write_text(config.format(name=name))
        arguments = ["train", str(tmp_path / "c.toml"), "--out", str(tmp_path / "c.bundle")]
        subprocess.run([sys.executable, "-m", "stream_gru", *arguments], capture_output=True, check=True)
        models.add(load_bundle(tmp_path / "c.bundle").manifest.model_id)
    assert len(models) == 1


def test_without_the_training_extra_the_message_says_what_to_install(tmp_path: Path) -> None:
    """On a gateway `train` is a clear refusal, exit 2."""
    (tmp_path / "c.toml").write_text(PUMPS.format(epochs=1, forecast="", training="", activation="softmax"))
    code = (
        "import sys\nsys.modules['tensorflow'] = None\nsys.modules['keras'] = None\n"
        f"from stream_gru.cli.main import run_cli\nsys.exit(run_cli(['train', '{tmp_path}/c.toml', '--out', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'stream-gru[train]'" in done.stderr
