"""The exported flatbuffer: small, builtin operators, the same bits for every batch size."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="export needs the train extra")

from stream_gru.config.field_types import Activation
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.litert import LitertEngine
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.keras.litert_graph import default_scan_steps, export_tflite
from tests.support.make_reference import keras_outputs
from tests.support.models import make_bundle, random_inputs

pytestmark = pytest.mark.train

ACTIVATIONS = get_args(Activation)
NETWORKS: dict[str, dict[str, Any]] = {
    "no_bias": {"use_bias": False},
    "reset_before_no_bias": {"use_bias": False, "reset_after": False},
    "lstm_stacked": {"cell": "lstm", "units": (8, 5)},
    "one_unit": {"units": (1,), "channels": 1, "targets": 1},
    "odd_width": {"units": (37,), "residual": False},
    # Each activation once for the candidate and once for the gates.
    **{
        f"activation_{name}_gates_{gates}": {"activation": name, "recurrent_activation": gates}
        for name, gates in zip(ACTIVATIONS, ACTIVATIONS[1:] + ACTIVATIONS[:1], strict=True)
    },
}


@pytest.mark.parametrize("network", NETWORKS)
def test_export_equals_keras_and_itself(network: str) -> None:
    """For every cell and activation: Keras' outputs; a row has the same bits in any batch, scan or step."""
    bundle = make_bundle(**NETWORKS[network], with_tflite=True, scan_steps=4)
    engine = load_engine("litert", bundle)
    # Few and small samples: gates that are not bounded (relu, linear, ...) make the state grow without limit.
    x = random_inputs(bundle.manifest, 6) / np.float32(8)
    expected = keras_outputs(bundle, x)
    for name in ("litert", "numpy"):
        y, _ = load_engine(name, bundle).scan(x, engine.initial_state(1)[0])
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    _assert_bits_do_not_depend_on_the_batch(engine, bundle)
    h, rows = engine.initial_state(1), []
    for t in range(len(x)):
        y, h = engine.step(x[t : t + 1], h)
        rows.append(y)
    np.testing.assert_array_equal(np.concatenate(rows), engine.scan(x, engine.initial_state(1)[0])[0])


def _assert_bits_do_not_depend_on_the_batch(engine: Any, bundle: Bundle) -> None:
    x = random_inputs(bundle.manifest, 300)
    h = np.random.default_rng(2).uniform(-1, 1, (300, engine.state_size)).astype(np.float32)
    one = [engine.step(x[i : i + 1], h[i : i + 1]) for i in range(300)]
    ys, hs = np.concatenate([y for y, _ in one]), np.concatenate([state for _, state in one])
    for size in range(1, 258):
        rows = slice(size * 7 % 43, size * 7 % 43 + size)
        y, state = engine.step(x[rows], h[rows])
        np.testing.assert_array_equal(y, ys[rows])
        np.testing.assert_array_equal(state, hs[rows])


def test_weights_are_stored_once() -> None:
    """The second signature and the unrolled steps do not duplicate the weights."""
    small, large = (
        make_bundle(units=(16,), with_tflite=True, scan_steps=8),
        make_bundle(units=(128,), with_tflite=True, scan_steps=8),
    )
    assert small.tflite is not None
    assert large.tflite is not None
    weights = [sum(w.nbytes for w in bundle.weights.values()) for bundle in (small, large)]
    assert len(large.tflite) - len(small.tflite) < 1.05 * (weights[1] - weights[0])


@pytest.mark.parametrize(("units", "steps"), [(8, 32), (32, 32), (64, 8), (128, 2), (256, 1), (512, 1)])
def test_scan_is_unrolled_while_its_kernels_fit_the_cache(units: int, steps: int) -> None:
    """Wide layers have short scans."""
    assert default_scan_steps(make_bundle(units=(units,)).manifest) == steps


def test_scan_steps_are_read_from_the_flatbuffer() -> None:
    """The engine reads the length of a scan from the file."""
    bundle = make_bundle(with_tflite=True, scan_steps=5)
    assert LitertEngine(bundle).scan_steps == 5


def test_scan_of_no_steps_is_rejected() -> None:
    """A scan has at least one step."""
    bundle = make_bundle()
    with pytest.raises(ValueError, match="scan_steps: expected a positive integer, got 0"):
        export_tflite(bundle.manifest, bundle.weights, scan_steps=0)
