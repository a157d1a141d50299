"""The ONNX graph: onnxruntime runs it with ONNX's recurrent operators and gives the outputs of the numpy engine."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from stream_gru.config.field_types import Activation, Cell
from stream_gru.core.errors import UnsupportedModelError
from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.onnx_engine import IR_VERSION, OPSET, onnx_model
from stream_gru.model.engines.registry import load_engine
from tests.support.models import CELLS_AND_HEADS, TOLERANCE, make_bundle, random_inputs

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

CELLS: dict[str, dict[str, Any]] = {
    **CELLS_AND_HEADS,
    "sigmoid": {"class_activation": "sigmoid"},
    "logistic": {"labels": 2, "class_activation": "logistic"},
    "embedding": {"categories": (9, 4), "embedding": 5, "calendar": 1},
    "one_hot": {"categories": (9, 4)},
    "categories_alone": {"channels": 0, "categories": (5,), "horizon": 0, "labels": 5},
}
CAN = ("tanh", "sigmoid", "relu", "linear", "hard_sigmoid", "softsign", "softplus", "elu")


def _run_onnx(bundle: Bundle, x: F32, h: F32) -> tuple[F32, F32]:
    """Run the file in plain onnxruntime: ``(T, B, I), (B, S) -> (T, B, K), (B, S)``."""
    content = onnx_model(bundle.manifest, bundle.weights)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    y, state = session.run(["y", "state"], {"x": x, "h": h})
    return y, state


def _loaded(bundle: Bundle) -> Any:
    return onnx.load_from_string(onnx_model(bundle.manifest, bundle.weights))


@pytest.mark.parametrize("name", CELLS)
def test_any_steps_of_any_streams_equal_the_numpy_engine(name: str) -> None:
    """T and B are free; every stream starts from its own state, and the last state is an output."""
    bundle = make_bundle(**CELLS[name], seed=5)
    engine = load_engine("numpy", bundle)
    for steps, streams in ((1, 1), (40, 3)):
        x = random_inputs(bundle.manifest, steps * streams).reshape(steps, streams, -1)
        h = np.random.default_rng(6).uniform(-1, 1, (streams, engine.state_size)).astype(np.float32)
        y, state = _run_onnx(bundle, x, h)
        for stream in range(streams):
            expected, last = engine.scan(np.ascontiguousarray(x[:, stream]), h[stream])
            np.testing.assert_allclose(y[:, stream], expected, rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(state[stream], last, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["lstm_stacked", "embedding"])
def test_a_sequence_can_be_cut_anywhere(name: str) -> None:
    """The output state is the next input state, without any difference in the outputs."""
    bundle = make_bundle(**CELLS[name])
    x, h = random_inputs(bundle.manifest, 60)[:, None], np.zeros((1, bundle.manifest.state_size), np.float32)
    whole, last = _run_onnx(bundle, x, h)
    first, h = _run_onnx(bundle, x[:23], h)
    second, h = _run_onnx(bundle, x[23:], h)
    np.testing.assert_allclose(np.concatenate([first, second]), whole, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(h, last, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("activation", CAN)
@pytest.mark.parametrize("cell", ["gru", "lstm", "simple_rnn"])
def test_every_activation_equals_numpy(cell: Cell, activation: Activation) -> None:
    """As activation and as gate, from random states; single steps, because gates above 1 make a state grow."""
    bundle = make_bundle(cell=cell, activation=activation, recurrent_activation=activation, seed=4)
    engine = load_engine("numpy", bundle)
    x = random_inputs(bundle.manifest, 60)
    h = np.random.default_rng(5).uniform(-2, 2, (60, engine.state_size)).astype(np.float32)
    y, state = _run_onnx(bundle, x[None], h)
    for got, wanted in zip((y[0], state), engine.step(x, h), strict=True):
        assert (np.abs(got - wanted) / (1 + np.abs(wanted))).max() < TOLERANCE


@pytest.mark.parametrize("activation", ["selu", "swish"])
@pytest.mark.parametrize("cell", ["gru", "lstm", "simple_rnn"])
def test_unsupported_activations_are_rejected_by_layer_and_name(cell: Cell, activation: Activation) -> None:
    """An activation that the operators lack is an error with the next step, not another function."""
    bundle = make_bundle(cell=cell, units=(4, 3), activation=activation)
    with pytest.raises(
        UnsupportedModelError, match=rf"layer recurrent_0: activation {activation} .*use another format"
    ):
        onnx_model(bundle.manifest, bundle.weights)


def test_a_gate_activation_is_checked_only_for_a_cell_with_gates() -> None:
    """A simple RNN has no gate, so its gate activation is ignored."""
    gated = make_bundle(recurrent_activation="swish")
    with pytest.raises(UnsupportedModelError, match="swish"):
        onnx_model(gated.manifest, gated.weights)
    plain = make_bundle(cell="simple_rnn", recurrent_activation="swish")
    onnx_model(plain.manifest, plain.weights)


@pytest.mark.parametrize(("cell", "operator"), [("gru", "GRU"), ("lstm", "LSTM"), ("simple_rnn", "RNN")])
def test_a_layer_is_one_onnx_operator(cell: Cell, operator: str) -> None:
    """ONNX tools recognise the layers; their states are slices of h."""
    model = _loaded(make_bundle(cell=cell, units=(4, 3)))
    recurrent = [node for node in model.graph.node if node.op_type in ("GRU", "LSTM", "RNN", "Loop", "Scan")]
    assert [(node.op_type, node.name) for node in recurrent] == [(operator, "recurrent_0"), (operator, "recurrent_1")]
    assert all(node.input[5] for node in recurrent)


def test_the_reset_gate_is_where_keras_has_it() -> None:
    """``linear_before_reset`` is ``reset_after``."""
    for reset_after in (True, False):
        model = _loaded(make_bundle(reset_after=reset_after))
        [gru] = [node for node in model.graph.node if node.op_type == "GRU"]
        assert [a.i for a in gru.attribute if a.name == "linear_before_reset"] == [int(reset_after)]


def test_inputs_and_outputs_have_free_steps_and_streams() -> None:
    """Inputs x and h, outputs y and state, with T and B as names."""
    bundle = make_bundle()
    graph = _loaded(bundle).graph
    shapes = {
        port.name: [axis.dim_param or axis.dim_value for axis in port.type.tensor_type.shape.dim]
        for port in (*graph.input, *graph.output)
    }
    assert shapes == {"x": ["T", "B", 3], "h": ["B", 8], "y": ["T", "B", 11], "state": ["B", 8]}


def test_the_file_describes_itself() -> None:
    """Model, period and the names of all inputs and outputs are in the file; old readers can read it."""
    bundle = make_bundle(calendar=1, quantiles=(0.1, 0.5, 0.9), horizon=2, targets=1, labels=2, warm_up=7)
    model = _loaded(bundle)
    props = {entry.key: entry.value for entry in model.metadata_props}
    assert (props["model_id"], props["period_s"], props["warm_up"]) == ("test-0", "1.0", "7")
    names = ["c0", "c1", "c2", "sine of hour_of_day", "cosine of hour_of_day"]
    assert json.loads(props["inputs"]) == names
    assert json.loads(props["units"]) == ["V"] * 3
    assert json.loads(props["labels"]) == ["label0", "label1"]
    outputs = json.loads(props["outputs"])
    assert outputs[:4] == ["c0 +1 quantile 0.1", "c0 +1 quantile 0.5", "c0 +1 quantile 0.9", "c0 +2 quantile 0.1"]
    assert outputs[6:] == ["probability of label0", "probability of label1"]
    assert len(outputs) == bundle.manifest.output_size
    assert (model.ir_version, model.opset_import[0].version) == (IR_VERSION, OPSET) == (8, 17)


def test_the_same_bundle_gives_the_same_bytes() -> None:
    """Files can be compared; another model gives another file."""
    first, second, other = (make_bundle(**CELLS["embedding"], seed=seed) for seed in (1, 1, 2))
    assert onnx_model(first.manifest, first.weights) == onnx_model(second.manifest, second.weights)
    assert onnx_model(first.manifest, first.weights) != onnx_model(other.manifest, other.weights)


def test_names_of_any_alphabet_are_kept() -> None:
    """Channel names are data, never names of tensors."""
    bundle = make_bundle(channels=1, targets=1)
    channel = msgspec.structs.replace(bundle.manifest.channels[0], name="scaled", unit="°C")
    assert bundle.manifest.forecast is not None
    forecast = msgspec.structs.replace(bundle.manifest.forecast, targets=["scaled"])
    manifest = msgspec.structs.replace(bundle.manifest, channels=[channel], forecast=forecast)
    model = onnx.load_from_string(onnx_model(manifest, bundle.weights))
    assert json.loads({p.key: p.value for p in model.metadata_props}["units"]) == ["°C"]


@pytest.mark.parametrize("cell", ["gru", "lstm", "simple_rnn"])
def test_the_engine_propagates_nan(cell: Cell) -> None:
    """From its first NaN on a stream is NaN, as in numpy; onnxruntime's operators alone would continue."""
    bundle = make_bundle(cell=cell)
    engines = [load_engine(name, bundle) for name in ("onnx", "numpy")]
    x = random_inputs(bundle.manifest, 20)
    x[7, 1] = np.nan
    h = np.zeros((20, bundle.manifest.state_size), np.float32)
    h[3, 2] = np.nan
    for call, state in (("scan", h[0]), ("step", h)):
        got, wanted = (getattr(engine, call)(x, state) for engine in engines)
        for ours, theirs in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(np.isnan(ours).all(axis=-1), np.isnan(theirs).any(axis=-1))


def test_a_nan_category_is_the_first() -> None:
    """A missing code does not make the state NaN; one outside the table is clipped, in onnx as in numpy."""
    bundle = make_bundle(**CELLS["embedding"])
    x = random_inputs(bundle.manifest, 4)
    x[:, 3] = x[:, 4] = np.nan, -5, 1.9, 100
    results = []
    for name in ("onnx", "numpy"):
        engine = load_engine(name, bundle)
        results.append(engine.step(x, engine.initial_state(4))[0])
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=TOLERANCE)
