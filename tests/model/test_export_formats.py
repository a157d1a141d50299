"""A bundle as a file of another tool: it loads there without this package, and computes the same."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from stream_gru import load_bundle
from stream_gru.cli.group import cli
from stream_gru.core.errors import BundleError, ConfigError
from stream_gru.core.types import F32
from stream_gru.model.bundle import KERAS
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.export.formats import FORMATS, ExportFormat, ExportRequest, default_path, export
from tests.support.models import make_bundle, random_inputs
from tests.support.paths import BUNDLE
from tests.support.requirements import needs_litert

needs_tensorflow = pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")

# Together they have every operation of the network: cells, slices, residual, quantiles, calendar, both kinds of
# categories, all heads.
NETWORKS: dict[str, dict[str, Any]] = {
    "calendar_quantiles": {"calendar": 2, "quantiles": (0.1, 0.5, 0.9), "class_activation": "sigmoid"},
    "categories_logistic": {"categories": (5, 4), "embedding": 3, "labels": 2, "class_activation": "logistic"},
    "lstm_stacked_one_hot": {"cell": "lstm", "units": (8, 5), "categories": (3,), "calendar": 1, "residual": False},
    "classes_alone": {"horizon": 0, "cell": "simple_rnn"},
    "one_hot_alone": {"channels": 0, "categories": (5,), "horizon": 0, "labels": 5},
    "words_alone": {
        "channels": 0, "categories": (9,), "embedding": 4, "horizon": 0, "labels": 2, "class_activation": "logistic",
    },
}  # fmt: skip
STRANGER = """
import json, sys
sys.modules["stream_gru"] = None  # not importable
import numpy as np, keras, tensorflow as tf
found = {}
for name in sys.argv[1:]:
    x = np.load(name + ".npz")["x"]
    out = {}
    for suffix in ("keras", "h5"):
        out[suffix] = np.asarray(keras.models.load_model(f"{name}.{suffix}")(x[None]))[0]
    signatures = tf.saved_model.load(name + ".saved_model").signatures
    size = int(signatures["step"].structured_input_signature[1]["h"].shape[1])
    out["sequence"] = signatures["sequence"](x=tf.constant(x[None]))["y"].numpy()[0]
    out["scan"] = signatures["scan"](x=tf.constant(x), h=tf.zeros((1, size)))["y"].numpy()
    h, rows = tf.zeros((1, size)), []
    for row in x:
        step = signatures["step"](x=tf.constant(row[None]), h=h)
        h = step["state"]
        rows.append(step["y"].numpy()[0])
    out["step"] = np.stack(rows)
    np.savez(name + "-out.npz", **out)
"""


@dataclass(frozen=True)
class StreamExport:
    """What the engine gives, and what each exported file gave in a process of its own; (T, K) each."""

    engine: F32
    found: dict[str, F32]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StreamExport]:
    """Every network in every format of TensorFlow, run in one process without this package."""
    folder = tmp_path_factory.mktemp("exported")
    expected = {}
    for name, options in NETWORKS.items():
        bundle = make_bundle(**options)
        x = random_inputs(bundle.manifest, 40)
        for part in bundle.manifest.categorical:
            x[:, part.index] = np.arange(len(x)) % part.categories
        np.savez(folder / f"{name}.npz", x=x)
        engine = load_engine("numpy", bundle)
        expected[name] = engine.scan(x, engine.initial_state(1)[0])[0]
        for form in ("keras", "h5", "saved-model"):
            export(ExportRequest(bundle), form, folder / f"{name}{FORMATS[form].suffix}")
    run_stranger(STRANGER, folder, *NETWORKS)
    return {
        name: StreamExport(expected[name], dict(np.load(folder / f"{name}-out.npz"))) for name in NETWORKS
    }  # fmt: skip


def run_stranger(code: str, folder: Path, *arguments: str) -> str:
    """Run code in a new process and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_tensorflow
@pytest.mark.train
@pytest.mark.parametrize("way", ["keras", "h5", "sequence", "scan", "step"])
@pytest.mark.parametrize("network", NETWORKS)
def test_exported_files_give_the_outputs_of_the_engine(
    exported: dict[str, StreamExport], network: str, way: str
) -> None:
    """Keras and TensorFlow without this package give the outputs of the engine, in engineering units."""
    one = exported[network]
    np.testing.assert_allclose(one.found[way], one.engine, rtol=1e-4, atol=1e-4)


LITERT = """
import json, sys
sys.modules["stream_gru"] = None
import numpy as np
from ai_edge_litert.interpreter import Interpreter
step = Interpreter("pump.tflite").get_signature_runner("step")
out = step(x=np.array(json.loads(sys.argv[1]), np.float32), h=np.zeros((1, 40), np.float32))
print(json.dumps(out["y"].tolist()))
"""


@needs_litert
def test_the_flatbuffer_runs_in_plain_litert(tmp_path: Path) -> None:
    """`tflite` is the bundle's flatbuffer, and LiteRT alone gives the engine's first step."""
    bundle = load_bundle(BUNDLE)
    export(ExportRequest(bundle), "tflite", tmp_path / "pump.tflite")
    assert (tmp_path / "pump.tflite").read_bytes() == bundle.tflite
    x = random_inputs(bundle.manifest, 1)
    engine = load_engine("litert", bundle)
    y = json.loads(run_stranger(LITERT, tmp_path, json.dumps(x.tolist())))
    np.testing.assert_array_equal(np.array(y, np.float32), engine.step(x, engine.initial_state(1))[0])


def test_the_keras_file_of_the_bundle_is_copied(tmp_path: Path) -> None:
    """If its hash is right, `keras` is a copy, without loading TensorFlow."""
    bundle = load_bundle(BUNDLE)
    written = export(ExportRequest(bundle), "keras", tmp_path / "pump.keras")
    data = (tmp_path / "pump.keras").read_bytes()
    assert hashlib.sha256(data).hexdigest() == bundle.manifest.files[KERAS].sha256
    assert written == {tmp_path / "pump.keras": len(data)}


@needs_tensorflow
@pytest.mark.train
def test_a_damaged_keras_file_is_not_exported(tmp_path: Path) -> None:
    """If the hash is wrong, the network is built from the weights, and a message reports it."""
    bundle = replace(load_bundle(BUNDLE), path=tmp_path)
    (tmp_path / KERAS).write_bytes(b"damaged")
    lines: list[str] = []
    export(ExportRequest(bundle, report=lines.append), "keras", tmp_path / "pump.keras")
    assert "SHA-256 differs" in lines[0]
    assert (tmp_path / "pump.keras").stat().st_size > 10_000


@needs_tensorflow
@pytest.mark.train
def test_a_file_with_other_outputs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The saved file is loaded again and compared before it is renamed."""
    from stream_gru.core.errors import ParityError
    from stream_gru.model.keras import keras_files as export_keras

    def forgets_the_weights(model: Any, weights: object) -> None:
        del model, weights

    monkeypatch.setattr(export_keras, "load_weights", forgets_the_weights)
    with pytest.raises(ParityError, match=r"expected the outputs of the bundle within .*nothing was written"):
        export(ExportRequest(make_bundle()), "h5", tmp_path / "model.h5")
    assert not list(tmp_path.iterdir())


@needs_tensorflow
@pytest.mark.train
def test_hdf5_clips_codes_to_their_table() -> None:
    """A code outside 0..N-1 counts as the nearest one, as in the engines."""
    from stream_gru.model.keras.keras_files import layers_only
    from stream_gru.model.keras.network import load_weights
    from stream_gru.model.keras.spec import NetworkSpec

    bundle = make_bundle(categories=(5, 4), embedding=3)
    w = bundle.weights
    model = layers_only(NetworkSpec.from_manifest(bundle.manifest), w["scaling/mean"], w["scaling/scale"])
    load_weights(model, w)
    x = random_inputs(bundle.manifest, 8)
    x[:, 3:] = np.array([[-7, 99], [4.9, -0.3], [1e9, 3.5], [2, 2]] * 2)
    engine = load_engine("numpy", bundle)
    expected, _ = engine.scan(x, engine.initial_state(1)[0])
    np.testing.assert_allclose(np.asarray(model(x[None]))[0], expected, rtol=1e-4, atol=1e-4)


def test_an_existing_path_is_not_replaced(tmp_path: Path) -> None:
    """An existing file or folder, even an empty one, stays unchanged."""
    for name, form in (("pump.tflite", "tflite"), ("folder", "saved-model")):
        (tmp_path / name).mkdir()
        with pytest.raises(ConfigError, match="already exists; remove it"):
            export(ExportRequest(load_bundle(BUNDLE)), form, tmp_path / name)


def test_a_file_is_not_a_parent_folder(tmp_path: Path) -> None:
    """A path below a file is rejected before anything is computed."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is not a folder"):
        export(ExportRequest(load_bundle(BUNDLE)), "tflite", tmp_path / "file" / "pump.tflite")


def test_parent_folders_are_created_and_no_temporary_file_is_left(tmp_path: Path) -> None:
    """Only the exported file is in the folder."""
    export(ExportRequest(load_bundle(BUNDLE)), "tflite", tmp_path / "a" / "b" / "pump.tflite")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["pump.tflite"]


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message has the command to install it."""
    monkeypatch.setitem(FORMATS, "h5", ExportFormat("no_such_package:h5_file", ".h5", "", extra="train"))
    with pytest.raises(ConfigError, match=r"no_such_package.*pip install 'stream-gru\[train\]'"):
        export(ExportRequest(load_bundle(BUNDLE)), "h5", tmp_path / "pump.h5")
    assert not list(tmp_path.iterdir())


def test_a_bundle_without_flatbuffer_cannot_be_exported_as_tflite(tmp_path: Path) -> None:
    """The message names the missing file."""
    with pytest.raises(BundleError, match=r"expected model\.tflite"):
        export(ExportRequest(make_bundle()), "tflite", tmp_path / "model.tflite")


def test_an_unknown_format_is_rejected(tmp_path: Path) -> None:
    """The message lists the known ones."""
    with pytest.raises(ConfigError, match="expected one of keras, h5, "):
        export(ExportRequest(load_bundle(BUNDLE)), "pt", tmp_path / "pump.pt")


@pytest.mark.parametrize(
    ("bundle", "form", "name"),
    [("pump.bundle", "h5", "pump.h5"), ("model", "tflite-int8", "model.int8.tflite"), ("a.b", "c", "a.b_c")],
)
def test_the_default_name_comes_from_the_bundle(bundle: str, form: str, name: str) -> None:
    """It is in the current folder, with the suffix of the format."""
    assert default_path(Path("somewhere") / bundle, form) == Path(name)


def run_export(*arguments: str) -> Result:
    """Run a command line in this process."""
    return CliRunner().invoke(cli, ["export", *arguments])


def test_the_command_prints_what_it_wrote_and_how_to_load_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path, size and a line of code on standard output; the name comes from the bundle."""
    monkeypatch.chdir(tmp_path)
    done = run_export(str(BUNDLE), "--format", "tflite")
    assert done.exit_code == 0
    size = (tmp_path / "pump.tflite").stat().st_size
    wrote, load = done.stdout.splitlines()
    assert wrote == f"wrote pump.tflite, {size:,} bytes"
    assert load == "load: ai_edge_litert.interpreter.Interpreter('pump.tflite').get_signature_runner('step')"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "pt"], "'pt' is not one of"),
        (["--format", "tflite-int8"], "needs --config"),
        (["--format", "tflite", "--force"], "need --format tflite-int8"),
        ([], "Missing option '--format'"),
    ],
)
def test_the_command_line_is_checked_first(arguments: list[str], message: str) -> None:
    """A mistake is exit code 2 before anything is read."""
    done = run_export("no.bundle", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_int8_needs_a_training_configuration(tmp_path: Path) -> None:
    """A configuration without recordings is rejected."""
    (tmp_path / "run.toml").write_text('[[channel]]\nname = "flow"\n')
    with pytest.raises(ConfigError, match="data"):
        run_raising(str(BUNDLE), "--format", "tflite-int8", "--config", str(tmp_path / "run.toml"), "--out", "x.tflite")


def run_raising(*arguments: str) -> None:
    """Run a command line without catching its errors."""
    CliRunner().invoke(cli, ["export", *arguments], catch_exceptions=False)


@pytest.mark.parametrize(("name", "out"), [("keras", "model.h5"), ("h5", "model.keras"), ("h5", "model")])
def test_a_suffix_of_another_keras_format_is_rejected(name: str, out: str, tmp_path: Path) -> None:
    """Keras chooses the format by the suffix, so the file could not be loaded again."""
    with pytest.raises(ConfigError, match=f"expected a name that ends in .{name}"):
        run_raising(str(BUNDLE), "--format", name, "--out", str(tmp_path / out))
    assert list(tmp_path.iterdir()) == []


def test_every_format_has_a_line_to_load_it() -> None:
    """The line of code contains the path."""
    lines = {name: form.load.format(path="'p'") for name, form in FORMATS.items()}
    assert all("'p'" in line for line in lines.values()), lines


def test_c_is_a_folder_of_sources(tmp_path: Path) -> None:
    """The folder holds a header and a source, and the result lists them with their sizes."""
    written = export(ExportRequest(load_bundle(BUNDLE)), "c", tmp_path / "pump_c")
    assert {path.suffix for path in written} == {".c", ".h"}
    assert written == {path: path.stat().st_size for path in (tmp_path / "pump_c").iterdir()}


@pytest.mark.skipif(find_spec("onnx") is None, reason="onnx is not installed")
def test_onnx_is_written_from_the_weights(tmp_path: Path) -> None:
    """The file is a model that the package onnx accepts."""
    import onnx

    export(ExportRequest(load_bundle(BUNDLE)), "onnx", tmp_path / "pump.onnx")
    onnx.checker.check_model(str(tmp_path / "pump.onnx"))
