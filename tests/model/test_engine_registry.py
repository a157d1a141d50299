"""Which engine is loaded for a name, and the error when it cannot be loaded."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from stream_gru.core.errors import BundleError, ConfigError
from stream_gru.model.engines import registry as engines
from stream_gru.model.engines.numpy_engine import ACTIVATIONS, sigmoid, softmax
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.manifest import Classes
from tests.support.models import make_bundle
from tests.support.reference_models import load_reference
from tests.support.requirements import needs_litert


def test_auto_is_numpy_without_a_flatbuffer() -> None:
    """A bundle without model.tflite still runs."""
    assert load_engine("auto", make_bundle()).name == "numpy"


@needs_litert
def test_auto_is_litert_with_a_flatbuffer() -> None:
    """The fast engine is chosen when it can run."""
    assert load_engine("auto", load_reference("lstm").bundle).name == "litert"


def test_auto_is_numpy_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a LiteRT wheel for the platform, numpy runs the same bundle."""
    monkeypatch.setattr(engines, "find_spec", lambda _: None)
    assert load_engine("auto", load_reference("lstm").bundle).name == "numpy"


def test_unknown_name_lists_the_engines() -> None:
    """The message lists the valid names."""
    with pytest.raises(ConfigError, match=r"expected auto, litert, numpy, onnx, keras, got 'torch'"):
        load_engine("torch", make_bundle())


@pytest.mark.parametrize(
    ("name", "package", "hint"),
    [
        ("litert", "ai_edge_litert.interpreter", "pip install ai-edge-litert"),
        ("onnx", "onnxruntime", r"pip install 'stream-gru\[onnx\]'"),
        ("onnx", "onnx", r"pip install 'stream-gru\[onnx\]'"),
        ("keras", "stream_gru.model.keras.network", r"pip install 'stream-gru\[train\]'"),
    ],
)
def test_the_error_of_a_missing_package_has_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str, hint: str
) -> None:
    """An engine whose package is missing is a configuration error with the command that helps."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=hint):
        load_engine(name, load_reference("lstm").bundle)


@needs_litert
def test_litert_rejects_a_bundle_without_flatbuffer() -> None:
    """The message names the missing file."""
    with pytest.raises(BundleError, match=r"model\.tflite"):
        load_engine("litert", make_bundle())


@needs_litert
@pytest.mark.parametrize("other", ["gru_quantiles", "gru_stacked", "gru_reset_after"])
def test_litert_rejects_the_flatbuffer_of_another_network(other: str) -> None:
    """Inputs, state or outputs of other sizes than the manifest's are a BundleError."""
    bundle = replace(load_reference("lstm").bundle, tflite=load_reference(other).bundle.tflite)
    with pytest.raises(BundleError, match=r"model\.tflite: signature"):
        load_engine("litert", bundle)


@needs_litert
def test_litert_rejects_outputs_that_are_not_in_the_manifest() -> None:
    """The number of outputs is checked even if inputs and state fit."""
    bundle = load_reference("lstm").bundle
    classes = Classes(labels=["a", "b", "c", "d"], activation="softmax")
    manifest = msgspec.structs.replace(bundle.manifest, classes=classes)
    with pytest.raises(BundleError, match=r"expected outputs of shape .*12.*, got .*11"):
        load_engine("litert", replace(bundle, manifest=manifest))


@needs_litert
def test_litert_rejects_bytes_that_are_not_a_model() -> None:
    """Random bytes are a BundleError, not a crash."""
    with pytest.raises(BundleError, match=r"model\.tflite: signature step"):
        load_engine("litert", replace(load_reference("lstm").bundle, tflite=b"not a flatbuffer at all" * 9))


@needs_litert
def test_litert_runs_without_the_native_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the native object of LiteRT has changed, the public runner gives the same bits."""
    from stream_gru.model.engines import litert

    ref = load_reference("gru_stacked")
    expected = load_engine("litert", ref.bundle).scan(ref.x, np.zeros(12, np.float32))
    monkeypatch.setattr(litert, "_NATIVE", ("NoSuchMethod",))
    got = load_engine("litert", ref.bundle).scan(ref.x, np.zeros(12, np.float32))
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(got[1], expected[1])


@needs_litert
def test_batches_are_split_and_padded_with_little_waste() -> None:
    """For any number of rows above 8, at most half of the computed rows are padding."""
    from stream_gru.model.engines.litert import SIZES, batch_size

    for rows in range(1, 3000):
        left, computed = rows, 0
        while left > 0:
            size = batch_size(left)
            assert size in SIZES
            left, computed = left - size, computed + size
        assert computed <= max(8, 2 * rows)


@needs_litert
def test_litert_writes_nothing_to_stderr_and_loads_no_keras() -> None:
    """The terminal stays clean, and the runtime stays small."""
    code = (
        "import sys; from tests.support.reference_models import load_reference;"
        "from stream_gru.model.engines.registry import load_engine;"
        "load_engine('auto', load_reference('lstm').bundle);"
        "print([m for m in ('keras', 'tensorflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_float32_and_leave_their_input(name: str) -> None:
    """Each activation returns a new float32 array, finite for moderate input."""
    x = np.linspace(-30, 30, 101, dtype=np.float32).reshape(1, -1)
    before = x.copy()
    y = ACTIVATIONS[name](x)
    assert y.dtype == np.float32
    assert y.shape == x.shape
    assert np.isfinite(y).all()
    assert not np.shares_memory(x, y)
    np.testing.assert_array_equal(x, before)


def test_sigmoid_and_softmax_are_stable() -> None:
    """Large arguments saturate without overflow warnings."""
    huge = np.array([[-1e30, -100, 0, 100, 1e30]], np.float32)
    np.testing.assert_array_equal(sigmoid(huge), [[0, 0, 0.5, 1, 1]])
    np.testing.assert_array_equal(softmax(huge), [[0, 0, 0, 0, 1]])
