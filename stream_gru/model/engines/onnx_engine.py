"""Engine on onnxruntime, and the network as one ONNX graph, built from the plain weights.

    x (T, B, I), h (B, S) -> y (T, B, K), state (B, S)     float32; T samples of each of B streams, both free

Every recurrent layer is one GRU, LSTM or RNN operator.  ``h`` is split into the operators' initial states, and
``state`` is concatenated from their last ones: feed it back as ``h`` to continue a stream.
Layouts: ONNX has kernels (1, G*U, inputs) and gates in the order z, r, h (GRU) and i, o, f, c (LSTM); Keras has
(inputs, G*U), and z, r, h and i, f, c, o.
Decision: opset 17 and IR version 8, which onnxruntime 1.12 and later read; nothing newer is needed.

onnxruntime guarantees no order of summation: with a simple RNN the last bits depend on the batch size.  With GRU and
LSTM they did not, and step and scan were equal, in onnxruntime 1.31 on x86-64.
Decision: the engine propagates NaN itself.  The recurrent operators replace it by a number, so the state would look
valid.
Decision: softplus is supported although onnxruntime's overflows above 88; the state is then not finite and is reset.

Source: https://onnx.ai/onnx/operators/ (GRU, LSTM and RNN of opset 14).
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.errors import UnsupportedModelError
from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.registry import EngineBase
from stream_gru.model.manifest import Categorical, Layer, Manifest

_BLOCK = 4096  # samples of a scan per call: limits the memory


class OnnxEngine(EngineBase):
    """Engine on onnxruntime, one thread.  Raises UnsupportedModelError for an activation that ONNX lacks."""

    name = "onnx"

    def __init__(self, bundle: Bundle) -> None:
        import onnxruntime

        manifest = bundle.manifest
        super().__init__(manifest)
        calendar = range(len(manifest.channels), manifest.input_size)
        self._numbers = [*manifest.numeric_index, *calendar]  # a NaN category is the first one
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        content = onnx_model(manifest, bundle.weights)
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance B streams by one sample: ``(B, I), (B, S) -> (B, K), (B, S)``.  Raises ValueError."""
        self._check_step(x, h)
        if not len(x):
            return np.empty((0, self.output_size), np.float32), np.array(h)
        y, state = self._run(x[None], h)
        return y[0], state

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance one stream by T samples: ``(T, I), (S,) -> (T, K), (S,)``.  Raises ValueError."""
        self._check_scan(x, h)
        y = np.empty((len(x), self.output_size), np.float32)
        state = np.array(h[None])
        for start in range(0, len(x), _BLOCK):
            block = slice(start, start + _BLOCK)
            part, state = self._run(x[block, None], state)
            y[block] = part[:, 0]
        return y, state[0]

    def _run(self, x: F32, h: F32) -> tuple[F32, F32]:
        """``(T, B, I), (B, S) -> (T, B, K), (B, S)``; the outputs of a stream are NaN from its first NaN on."""
        y, state = self._session.run(("y", "state"), {"x": x, "h": h})
        if math.isnan(x.min()) or math.isnan(h.min()):
            self._spread_nan(x, h, y, state)
        return y, state

    def _spread_nan(self, x: F32, h: F32, y: F32, state: F32) -> None:
        lost = np.asarray(np.isnan(x[:, :, self._numbers]).any(axis=2))
        lost[0] |= np.isnan(h).any(axis=1)
        lost = np.logical_or.accumulate(lost, axis=0)
        y[lost] = np.nan
        state[lost[-1]] = np.nan


OPSET = 17
IR_VERSION = 8
_OPERATORS = {"gru": "GRU", "lstm": "LSTM", "simple_rnn": "RNN"}
_GATES = {"gru": (0, 1, 2), "lstm": (0, 3, 1, 2), "simple_rnn": (0,)}  # block of Keras for each block of ONNX
# Name, alpha and beta of the activations that the operators have; the other ones of Keras are not supported.
_ACTIVATIONS: dict[str, tuple[str, list[float], list[float]]] = {
    "tanh": ("Tanh", [], []),
    "sigmoid": ("Sigmoid", [], []),
    "relu": ("Relu", [], []),
    "linear": ("Affine", [1.0], [0.0]),
    "hard_sigmoid": ("HardSigmoid", [1 / 6], [0.5]),
    "softsign": ("Softsign", [], []),
    "softplus": ("Softplus", [], []),
    "elu": ("Elu", [1.0], []),
}


def onnx_model(manifest: Manifest, weights: dict[str, F32]) -> bytes:
    """Return the graph as a checked ONNX file; the same bytes for the same bundle.

    ``weights`` are named and shaped as in `stream_gru.model.bundle`.
    Raises UnsupportedModelError for an activation that ONNX lacks, ImportError without the package onnx.
    """
    import onnx

    for layer in manifest.layers:
        _check_activations(layer)
    graph = _Graph(manifest, weights)
    graph.build()
    model = onnx.helper.make_model(
        graph.finish(),
        ir_version=IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        producer_name="stream-gru",
        doc_string="Engineering units in and out. Feed the output state back as h; zeros are a stream's first state.",
    )
    onnx.helper.set_model_props(model, _metadata(manifest))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _metadata(manifest: Manifest) -> dict[str, str]:
    return {
        "model_id": manifest.model_id,
        "period_s": repr(manifest.period_s),
        "warm_up": str(manifest.warm_up),
        "window": str(manifest.window or 0),
        "inputs": json.dumps(manifest.input_names),
        "units": json.dumps([channel.unit for channel in manifest.channels]),
        "outputs": json.dumps(manifest.output_names),
        "labels": json.dumps([] if manifest.classes is None else manifest.classes.labels),
    }


def _check_activations(layer: Layer) -> None:
    for name in _layer_activations(layer):
        if name not in _ACTIVATIONS:
            raise UnsupportedModelError(
                f"layer {layer.name}: activation {name} cannot be written as ONNX, whose {_OPERATORS[layer.cell]}"
                f" operator has only {', '.join(_ACTIVATIONS)}; use another format or engine,"
                " or train with one of these"
            )


def _layer_activations(layer: Layer) -> list[str]:
    """The operator's activations in ONNX's order: gates, candidate, output of an LSTM."""
    if layer.cell == "simple_rnn":
        return [layer.activation]
    return [layer.recurrent_activation, layer.activation, *([layer.activation] if layer.cell == "lstm" else [])]


class _Graph:
    """Collects nodes and constants; tensors are referred to by name, as in ONNX."""

    def __init__(self, manifest: Manifest, weights: dict[str, F32]) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._from_array = helper, numpy_helper.from_array
        self._manifest, self._w = manifest, weights
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def build(self) -> None:
        """Add the nodes from x and h to y and state."""
        scaled = self._scale()
        rows, states = self._features(scaled), []
        parts = self._initial_states()
        for layer in self._manifest.layers:
            rows, ended = self._layer(layer, rows, [parts.pop(0) for _ in range(layer.state_size // layer.units)])
            states += ended
        self._concat(self._heads(rows, scaled), "y", axis=2)
        self._concat(states, "state", axis=1)

    def finish(self) -> Any:
        """Return the graph with its inputs and outputs."""
        m, kind = self._manifest, 1  # TensorProto.FLOAT
        port = self._helper.make_tensor_value_info
        inputs = [
            port("x", kind, ["T", "B", m.input_size], f"T samples of B streams: {', '.join(m.input_names)}"),
            port("h", kind, ["B", m.state_size], "hidden state of each stream; zeros at its first sample"),
        ]
        outputs = [
            port("y", kind, ["T", "B", m.output_size], f"outputs after each sample: {', '.join(m.output_names)}"),
            port("state", kind, ["B", m.state_size], "hidden state after the last sample"),
        ]
        return self._helper.make_graph(self._nodes, "stream_gru", inputs, outputs, self._constants)

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(self._helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        self._constants.append(self._from_array(np.asarray(value, order="C"), name))
        return name

    def _integers(self, name: str, value: list[int] | int) -> str:
        return self._constant(name, np.array(value, np.int64))

    def _concat(self, parts: list[str], output: str, axis: int) -> str:
        if len(parts) == 1:
            return self._add("Identity", parts, output)
        return self._add("Concat", parts, output, axis=axis)

    def _scale(self) -> str:
        """All channels in scaled units, (T, B, C); categories unchanged."""
        channels = "x"
        if self._manifest.calendar:
            channels = self._columns("x", 0, len(self._manifest.channels), "channels")
        mean = self._constant("scaling/mean", self._w["scaling/mean"])
        scale = self._constant("scaling/scale", self._w["scaling/scale"])
        return self._add("Div", [self._add("Sub", [channels, mean], "centred"), scale], "scaled")

    def _columns(self, tensor: str, start: int, end: int, output: str) -> str:
        bounds = [self._integers(f"{output}/{name}", [value]) for name, value in (("start", start), ("end", end))]
        return self._add("Slice", [tensor, *bounds, self._integers(f"{output}/axis", [2])], output)

    def _features(self, scaled: str) -> str:
        """Inputs of the first layer: quantities, calendar inputs, then a vector for each category."""
        m, parts = self._manifest, []
        if not m.categorical:
            parts.append(scaled)
        elif m.numeric_index:
            index = self._integers("numeric/index", m.numeric_index)
            parts.append(self._add("Gather", [scaled, index], "numeric", axis=2))
        if m.calendar:
            parts.append(self._columns("x", len(m.channels), m.input_size, "calendar"))
        parts += [self._category(part) for part in m.categorical]
        return parts[0] if len(parts) == 1 else self._concat(parts, "features", axis=2)

    def _category(self, part: Categorical) -> str:
        """The vector of a category, (T, B, E).

        Codes are clipped to the table before the cast (values beyond the range of integers) and after it (NaN).
        """
        name = f"category_{part.index}"
        value = self._add("Gather", ["x", self._integers(f"{name}/index", part.index)], f"{name}/value", axis=2)
        value = self._clip(value, f"{name}/number", np.array([0, part.categories - 1], np.float32))
        code = self._add("Cast", [value], f"{name}/cast", to=6)  # TensorProto.INT32
        code = self._clip(code, f"{name}/code", np.array([0, part.categories - 1], np.int32))
        if part.units:
            return self._add("Gather", [self._constant(part.table, self._w[part.table]), code], name, axis=0)
        depth = self._constant(f"{name}/depth", np.array(part.categories, np.int32))
        values = self._constant(f"{name}/off_on", np.array([0, 1], np.float32))
        return self._add("OneHot", [code, depth, values], name, axis=-1)

    def _clip(self, value: str, name: str, ends: NDArray[Any]) -> str:
        limits = [self._constant(f"{name}/{end}", ends[place]) for place, end in enumerate(("first", "last"))]
        return self._add("Clip", [value, *limits], name)

    def _initial_states(self) -> list[str]:
        """``h`` split into (1, B, U) each, in the order of the layers; of an LSTM h, then c."""
        ports = [("h", "c") if layer.cell == "lstm" else ("h",) for layer in self._manifest.layers]
        pairs = list(zip(self._manifest.layers, ports, strict=True))
        names = [f"{layer.name}/initial_{port}" for layer, ports in pairs for port in ports]
        sizes = [layer.units for layer, ports in pairs for _ in ports]
        rows = self._add("Unsqueeze", ["h", self._integers("h/axis", [0])], "h_rows")
        if len(names) == 1:
            return [rows]
        split = self._integers("h/sizes", sizes)
        self._nodes.append(self._helper.make_node("Split", [rows, split], names, name="h_parts", axis=2))
        return names

    def _layer(self, layer: Layer, x: str, initial: list[str]) -> tuple[str, list[str]]:
        """One recurrent operator: (T, B, W) -> (T, B, U), and its last states (B, U) each."""
        constants = [self._constant(f"{layer.name}/{key}", value) for key, value in _kernels(layer, self._w).items()]
        bias = [] if layer.use_bias else [""]  # the name of an omitted input is empty
        ends = [f"{layer.name}/last_{port}" for port in "hc"[: len(initial)]]
        self._nodes.append(
            self._helper.make_node(
                _OPERATORS[layer.cell],
                [x, *constants, *bias, "", *initial],
                [f"{layer.name}/directions", *ends],
                name=layer.name,
                hidden_size=layer.units,
                **_attributes(layer),
            )
        )
        axis = self._integers(f"{layer.name}/direction", [1])
        rows = self._add("Squeeze", [f"{layer.name}/directions", axis], f"{layer.name}/rows")
        first = self._integers(f"{layer.name}/first", [0])
        return rows, [self._add("Squeeze", [end, first], f"{end}_rows") for end in ends]

    def _heads(self, rows: str, scaled: str) -> list[str]:
        m, outputs = self._manifest, []
        if m.forecast is not None:
            outputs.append(self._forecast(rows, scaled, residual=m.forecast.residual))
        if m.classes is not None:
            outputs.append(self._probabilities(self._dense(rows, "classes"), m.classes.activation))
        return outputs

    def _dense(self, rows: str, name: str) -> str:
        kernel, bias = (self._constant(f"{name}/{key}", self._w[f"{name}/{key}"]) for key in ("kernel", "bias"))
        return self._add("Add", [self._add("MatMul", [rows, kernel], f"{name}/product"), bias], f"{name}/dense")

    def _forecast(self, rows: str, scaled: str, *, residual: bool) -> str:
        """Dense in scaled units, plus the last scaled value with ``residual``; then engineering units."""
        targets = self._manifest.target_index
        column = np.repeat(targets, self._manifest.forecast_size // len(targets))  # target of each output
        y = self._dense(rows, "forecast")
        if residual:
            index = self._constant("forecast/column", column.astype(np.int64))
            y = self._add("Add", [y, self._add("Gather", [scaled, index], "last", axis=2)], "forecast/scaled")
        scale = self._constant("forecast/scale", self._w["scaling/scale"][column])
        mean = self._constant("forecast/mean", self._w["scaling/mean"][column])
        return self._add("Add", [self._add("Mul", [y, scale], "forecast/shrunk"), mean], "forecast")

    def _probabilities(self, logits: str, activation: str) -> str:
        if activation == "softmax":
            return self._add("Softmax", [logits], "classes", axis=-1)
        if activation == "sigmoid":
            return self._add("Sigmoid", [logits], "classes")
        second = self._add("Sigmoid", [logits], "classes/second")
        one = self._constant("classes/one", np.array(1, np.float32))
        return self._concat([self._add("Sub", [one, second], "classes/first"), second], "classes", axis=2)


def _kernels(layer: Layer, w: dict[str, F32]) -> dict[str, F32]:
    """W (1, G*U, W), R (1, G*U, U) and, with a bias, B (1, 2*G*U) of an operator; gates in ONNX's order."""
    kernels = {key: _gates(layer, w[f"{layer.name}/{key}"])[None] for key in ("kernel", "recurrent_kernel")}
    if not layer.use_bias:
        return kernels
    both = w[f"{layer.name}/bias"].reshape(-1, layer.gates * layer.units)
    if len(both) == 1:  # Keras has one bias, ONNX two
        both = np.concatenate([both, np.zeros_like(both)])
    return {**kernels, "bias": np.concatenate([_gates(layer, bias[None])[:, 0] for bias in both])[None]}


def _gates(layer: Layer, array: F32) -> F32:
    """(rows, G*U) in Keras' order of the gates -> (G*U, rows) in ONNX's."""
    blocks = array.T.reshape(layer.gates, layer.units, -1)
    return blocks[list(_GATES[layer.cell])].reshape(layer.gates * layer.units, -1)


def _attributes(layer: Layer) -> dict[str, Any]:
    entries = [_ACTIVATIONS[name] for name in _layer_activations(layer)]
    attributes: dict[str, Any] = {"activations": [name for name, _, _ in entries]}
    for key, values in (("alpha", [a for _, a, _ in entries]), ("beta", [b for _, _, b in entries])):
        if any(values):
            attributes[f"activation_{key}"] = [number for numbers in values for number in numbers]
    if layer.cell == "gru":
        attributes["linear_before_reset"] = int(layer.reset_after)
    return attributes
