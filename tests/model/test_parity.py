"""The parity check accepts equal engines and rejects others with an error that names the position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream_gru.core.errors import ParityError
from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.manifest import EngineParity
from stream_gru.model.parity import check_parity, scaled_difference
from tests.support.models import make_bundle
from tests.support.reference_models import Reference, load_reference, reference_names

pytest.importorskip("ai_edge_litert", reason="the gate runs litert")


def _gate(bundle: Bundle, y: F32, x: F32) -> list[EngineParity]:
    assert bundle.tflite is not None
    return check_parity(bundle.manifest, bundle.weights, bundle.tflite, y, x)


@pytest.mark.parametrize("name", reference_names())
def test_equal_engines_pass(name: str) -> None:
    """Both engines are reported with the largest difference, far below the tolerance."""
    ref = load_reference(name)
    rows = _gate(ref.bundle, ref.y, ref.x)
    assert [row.engine for row in rows] == ["litert", "numpy"]
    assert [row.samples for row in rows] == [75 + 256, 75]
    assert all(row.max_difference < row.tolerance for row in rows)


def _with_weight(ref: Reference, name: str, change: float) -> Bundle:
    weights = {key: value.copy() for key, value in ref.bundle.weights.items()}
    weights[name].flat[0] += change
    return replace(ref.bundle, weights=weights)


@pytest.mark.parametrize(
    "weight", ["recurrent_0/kernel", "recurrent_0/recurrent_kernel", "recurrent_0/bias", "forecast/bias"]
)
def test_one_wrong_weight_is_found(weight: str) -> None:
    """A weight that is off by 0.001 in one engine stops the export."""
    ref = load_reference("gru_reset_after")
    with pytest.raises(ParityError, match=r"step \d+, output c[01] \+\d: expected .*, got .* scaled units"):
        _gate(_with_weight(ref, weight, 1e-3), ref.y, ref.x)


def test_error_names_engine_step_and_column() -> None:
    """The message names the output that differs."""
    ref = load_reference("gru_reset_after")
    y = ref.y.copy()
    y[31, 9] += 0.01
    with pytest.raises(ParityError, match=r"litert \(step\): step 31, output probability of label1: expected .*, got "):
        _gate(ref.bundle, y, ref.x)


def test_outputs_that_are_not_finite_are_rejected() -> None:
    """A model with NaN outputs is rejected, even if all engines agree."""
    ref = load_reference("lstm")
    y = ref.y.copy()
    y[3] = np.nan
    with pytest.raises(ParityError, match="keras: step 3: expected finite outputs"):
        _gate(ref.bundle, y, ref.x)


def test_outputs_of_another_length_are_rejected() -> None:
    """Samples and outputs must have the same length."""
    ref = load_reference("lstm")
    with pytest.raises(ValueError, match=r"expected shape \(75, 11\), got \(74, 11\)"):
        _gate(ref.bundle, ref.y[:-1], ref.x)


def test_difference_is_in_scaled_units() -> None:
    """Forecasts are divided by their target's scale, probabilities are not; two units in the last place count as 0."""
    bundle = make_bundle(targets=1, horizon=1, labels=2)
    weights = {**bundle.weights, "scaling/scale": np.full(3, 50, np.float32)}
    weights["scaling/mean"] = np.full(3, 101_325, np.float32)
    b = np.array([[101_325, 0.5, 0.5]], np.float32)
    difference = scaled_difference(bundle.manifest, weights, b + np.array([[5, 0.1, 0]], np.float32), b)
    np.testing.assert_allclose(difference, [[0.1, 0.1, 0]], atol=1e-3)
    nudged = np.nextafter(b, np.float32(np.inf))
    assert scaled_difference(bundle.manifest, weights, nudged, b).max() == 0


def test_difference_from_nan_is_infinite() -> None:
    """Only equal values and two NaN have the difference 0."""
    bundle = make_bundle(targets=1, horizon=1, labels=2)
    a = np.array([[np.nan, np.nan, np.inf]], np.float32)
    b = np.array([[np.nan, 0.5, np.inf]], np.float32)
    np.testing.assert_array_equal(scaled_difference(bundle.manifest, bundle.weights, a, b), [[0, np.inf, 0]])


def test_columns_have_names() -> None:
    """Every output has a name, in the order of the bundle."""
    manifest = make_bundle(targets=2, horizon=2, labels=1, quantiles=(0.1, 0.5, 0.9)).manifest
    names = manifest.output_names
    assert names[0] == "c1 +1 quantile 0.1"
    assert names[11] == "c0 +2 quantile 0.9"
    assert names[12] == "probability of label0"
    assert len(set(names)) == 13


def test_a_long_recording_is_compared_in_blocks_and_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reference's states each block is compared from its own state, and the whole once with carried state."""
    monkeypatch.setattr("stream_gru.model.parity.BLOCK_STEPS", 30)
    ref = load_reference("gru_reset_after")
    assert ref.bundle.tflite is not None
    engine = load_engine("litert", ref.bundle)
    states = [engine.initial_state(1)[0]]
    for first in (0, 30):
        states.append(engine.scan(ref.x[first : first + 30], states[-1])[1])
    manifest, weights, tflite = ref.bundle.manifest, ref.bundle.weights, ref.bundle.tflite
    rows = check_parity(manifest, weights, tflite, ref.y, ref.x, states=np.stack(states))
    assert [row.engine for row in rows] == ["litert", "numpy", "litert carried", "numpy carried"]
    assert [row.samples for row in rows] == [75 + 256, 75, 75, 75]
    states[1] = states[1] + np.float32(0.01)
    with pytest.raises(ParityError, match=r"step 3\d, "):
        check_parity(manifest, weights, tflite, ref.y, ref.x, states=np.stack(states))
