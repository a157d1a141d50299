"""Write the network as a LiteRT flatbuffer with two signatures, `step` and `scan`, from the plain weights.

    step  x (B, I), h (B, S) -> y (B, K), state (B, S)     B streams by one sample, B free
    scan  x (T, I), h (1, S) -> y (T, K), state (1, S)     one stream by T = ``scan_steps`` samples, unrolled

Decision: the step is a ``tf.Module`` of single operations, converted from a SavedModel.  Converting a one-step Keras
functional model from concrete functions gave a file without its weights (NaN).
Decision: in `scan` the non-recurrent operations (scaling, input projections, heads) run once over all T rows; only the
recurrent part is unrolled.  A row of a matrix product does not depend on the other rows, so the results equal those of
`step` bit for bit, which the parity check verifies.
Decision: T is limited by the size of the weights.  XNNPACK packs a copy of the recurrent kernel for each unrolled step;
when the copies exceed the second-level cache a scan gets slower (with 64 units: 1.3 us per sample for T = 16, 2.6 for
T = 32).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from stream_gru.core.plugins import suppress_native_stderr
from stream_gru.core.types import F32, I64
from stream_gru.model.engines.numpy_engine import SELU_ALPHA, SELU_SCALE
from stream_gru.model.manifest import Layer, Manifest

MAX_SCAN_STEPS = 32
_CACHE_BYTES = 512 * 1024  # second-level cache per core of a typical gateway


def export_tflite(manifest: Manifest, weights: dict[str, F32], scan_steps: int | None = None) -> bytes:
    """Return the flatbuffer of the network: float32, builtin operators only.

    ``weights`` are named and shaped as in `stream_gru.model.bundle`; ``scan_steps`` None: see `default_scan_steps`.
    Raises ValueError when ``scan_steps`` is below 1.
    """
    if scan_steps is None:
        scan_steps = default_scan_steps(manifest)
    if scan_steps < 1:
        msg = f"scan_steps: expected a positive integer, got {scan_steps}"
        raise ValueError(msg)
    module = weights_module(weights)
    graph = StepGraph(manifest, module.weights)
    inputs, state = manifest.input_size, manifest.state_size
    step = tf.function(graph.step).get_concrete_function(input_spec(None, inputs, "x"), input_spec(None, state, "h"))
    scan = tf.function(graph.scan).get_concrete_function(input_spec(scan_steps, inputs, "x"), input_spec(1, state, "h"))
    with tempfile.TemporaryDirectory() as folder, suppress_native_stderr():
        tf.saved_model.save(module, folder, signatures={"step": step, "scan": scan})
        return _convert(Path(folder))


def weights_module(weights: dict[str, F32]) -> Any:
    """A ``tf.Module`` whose ``.weights`` are variables by their names in the bundle."""
    module = tf.Module()
    module.weights = {name: tf.Variable(value, name=name) for name, value in weights.items()}
    return module


def default_scan_steps(manifest: Manifest) -> int:
    """The largest power of two, at most 32, for which the unrolled recurrent kernels fit into the cache."""
    one = max(4 * layer.gates * layer.units**2 for layer in manifest.layers)
    fitting = max(1, _CACHE_BYTES // one)
    return min(MAX_SCAN_STEPS, 1 << (fitting.bit_length() - 1))


def input_spec(rows: int | None, columns: int, name: str) -> Any:
    """Specification of an input of a signature, (rows, columns) float32."""
    return tf.TensorSpec([rows, columns], tf.float32, name=name)


def _convert(folder: Path) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["step", "scan"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return bytes(converter.convert())


class StepGraph:
    """The network as TensorFlow operations; ``w``: variables by their names in the bundle."""

    def __init__(self, manifest: Manifest, w: dict[str, Tensor]) -> None:
        self.manifest = manifest
        self.w = w

    def step(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        """Advance B streams by one sample."""
        return self._run(x, h, unroll=1)

    def scan(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        """Advance one stream by as many samples as ``x`` has rows."""
        return self._run(x, h, unroll=int(x.shape[0]))

    def _run(self, x: Tensor, h: Tensor, unroll: int) -> dict[str, Tensor]:
        scaled = self._scale(x)
        rows, states, start = self._features(scaled, x), [], 0
        for layer in self.manifest.layers:
            state = h[:, start : start + layer.state_size]
            start += layer.state_size
            rows, state = self._layer(layer, rows, state, unroll)
            states.append(state)
        return {"y": self._heads(rows, scaled), "state": _concatenated(states, axis=1)}

    def _scale(self, x: Tensor) -> Tensor:
        """All channels in scaled units, (rows, C); categories unchanged."""
        channels = len(self.manifest.channels)
        return (x[:, :channels] - self.w["scaling/mean"]) / self.w["scaling/scale"]

    def _features(self, scaled: Tensor, x: Tensor) -> Tensor:
        """Inputs of the first layer: quantities, calendar inputs, then a vector for each category."""
        channels, numeric = len(self.manifest.channels), self.manifest.numeric_index
        parts = [scaled] if len(numeric) == channels else [scaled[:, c : c + 1] for c in numeric]
        if self.manifest.calendar:
            parts.append(x[:, channels:])
        for part in self.manifest.categorical:
            # Clip to the table after the cast, which turns NaN into a number.
            codes = tf.clip_by_value(tf.cast(x[:, part.index], tf.int32), 0, part.categories - 1)
            table = self.w[part.table] if part.units else None
            parts.append(tf.one_hot(codes, part.categories) if table is None else tf.gather(table, codes))
        return _concatenated(parts, axis=1)

    def _layer(self, layer: Layer, x: Tensor, state: Tensor, unroll: int) -> tuple[Tensor, Tensor]:
        projected = project(layer, self.w, x)
        if unroll == 1:
            state = cell_step(layer, self.w, projected, state)
            return state[:, : layer.units], state
        rows = []
        for t in range(unroll):
            state = cell_step(layer, self.w, [part[t : t + 1] for part in projected], state)
            rows.append(state[:, : layer.units])
        return tf.concat(rows, axis=0), state

    def _heads(self, h: Tensor, scaled: Tensor) -> Tensor:
        outputs = []
        if self.manifest.forecast is not None:
            outputs.append(self._forecast(h, scaled))
        if self.manifest.classes is not None:
            outputs.append(self._probabilities(h, self.manifest.classes.activation))
        return _concatenated(outputs, axis=1)

    def _forecast(self, h: Tensor, scaled: Tensor) -> Tensor:
        """Dense in scaled units, plus the last scaled value with ``residual``; then engineering units."""
        assert self.manifest.forecast is not None  # noqa: S101 - for mypy
        y = dense(h, self.w, "forecast")
        targets = self.manifest.target_index
        column = np.repeat(targets, self.manifest.forecast_size // len(targets))
        if self.manifest.forecast.residual:
            y = y + self._last_values(scaled, column)
        return y * tf.gather(self.w["scaling/scale"], column) + tf.gather(self.w["scaling/mean"], column)

    def _last_values(self, scaled: Tensor, column: I64) -> Tensor:
        """The scaled value of the target of each forecast output, (rows, D * H * Q)."""
        # A product with zeros and ones is exact and, unlike a gather, runs in XNNPACK.
        pick = np.zeros((len(self.manifest.channels), len(column)), np.float32)
        pick[column, np.arange(len(column))] = 1
        return tf.matmul(scaled, pick)

    def _probabilities(self, h: Tensor, activation: str) -> Tensor:
        logits = dense(h, self.w, "classes")
        if activation != "logistic":
            return tf_activation(activation, logits)
        second = tf.sigmoid(logits)
        return tf.concat([1.0 - second, second], axis=1)


def dense(h: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    """Dense layer of a head: ``h @ kernel + bias``."""
    return tf.nn.bias_add(tf.matmul(h, w[f"{name}/kernel"]), w[f"{name}/bias"])


def _concatenated(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=axis)


Tensor = Any  # tensorflow ships no types
Weights = dict[str, Tensor]


def column_blocks(layer: Layer) -> list[list[tuple[int, int]]]:
    """Column ranges of the kernels that are multiplied together: one block per activation.

    GRU: z and r, then h.  LSTM: i, f and o, then c.  This saves operations per step.
    """
    u = layer.units
    if layer.cell == "gru":
        return [[(0, 2 * u)], [(2 * u, 3 * u)]]
    if layer.cell == "lstm":
        return [[(0, 2 * u), (3 * u, 4 * u)], [(2 * u, 3 * u)]]
    return [[(0, u)]]


def project(layer: Layer, w: Weights, x: Tensor) -> list[Tensor]:
    """The non-recurrent part of a step, ``x @ kernel + input bias``, one tensor per column block."""
    bias = None
    if layer.use_bias:
        bias = tf.reshape(w[f"{layer.name}/bias"], [-1, layer.gates * layer.units])[0]
    return _product(layer, x, w[f"{layer.name}/kernel"], bias)


def cell_step(layer: Layer, w: Weights, projected: list[Tensor], state: Tensor) -> Tensor:
    """Advance one layer: return its new state (B, U or 2U) from its projected input and its state."""
    return {"gru": _gru, "lstm": _lstm, "simple_rnn": _simple_rnn}[layer.cell](layer, w, projected, state)


def _product(layer: Layer, x: Tensor, kernel: Tensor, bias: Tensor | None) -> list[Tensor]:
    products = []
    for block in column_blocks(layer):
        y = tf.matmul(x, _columns(kernel, block))
        products.append(y if bias is None else tf.nn.bias_add(y, _columns(bias, block)))
    return products


def _columns(array: Tensor, block: list[tuple[int, int]]) -> Tensor:
    parts = [array[..., a:b] for a, b in block]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=-1)


def _gru(layer: Layer, w: Weights, projected: list[Tensor], h: Tensor) -> Tensor:
    u = layer.units
    kernel = w[f"{layer.name}/recurrent_kernel"]
    if layer.reset_after:
        bias = w[f"{layer.name}/bias"][1] if layer.use_bias else None
        gates, inner = _product(layer, h, kernel, bias)
    else:
        gates, inner = tf.matmul(h, kernel[:, : 2 * u]), None
    gates = tf_activation(layer.recurrent_activation, projected[0] + gates)
    z, r = gates[:, :u], gates[:, u:]
    inner = tf.matmul(r * h, kernel[:, 2 * u :]) if inner is None else r * inner
    candidate = tf_activation(layer.activation, projected[1] + inner)
    return candidate + z * (h - candidate)


def _lstm(layer: Layer, w: Weights, projected: list[Tensor], state: Tensor) -> Tensor:
    u = layer.units
    h, c = state[:, :u], state[:, u:]
    gates, candidate = _product(layer, h, w[f"{layer.name}/recurrent_kernel"], None)
    gates = tf_activation(layer.recurrent_activation, projected[0] + gates)
    candidate = tf_activation(layer.activation, projected[1] + candidate)
    c = gates[:, u : 2 * u] * c + gates[:, :u] * candidate
    return tf.concat([gates[:, 2 * u :] * tf_activation(layer.activation, c), c], axis=1)


def _simple_rnn(layer: Layer, w: Weights, projected: list[Tensor], h: Tensor) -> Tensor:
    return tf_activation(layer.activation, projected[0] + tf.matmul(h, w[f"{layer.name}/recurrent_kernel"]))


def tf_activation(name: str, x: Tensor) -> Tensor:
    """Apply an activation by its Keras name, using operations of LiteRT only (no expm1, no log1p)."""
    if name == "linear":
        return x
    if name == "hard_sigmoid":
        return tf.nn.relu6(x + 3.0) * (1.0 / 6.0)
    if name == "softsign":
        return x / (1.0 + tf.abs(x))
    if name == "softplus":
        return tf.nn.relu(x) + tf.math.log(1.0 + tf.exp(-tf.abs(x)))
    if name == "selu":
        return SELU_SCALE * (tf.nn.relu(x) + SELU_ALPHA * (tf.exp(tf.minimum(x, 0.0)) - 1.0))
    if name == "swish":
        return x * tf.sigmoid(x)
    simple = {"tanh": tf.tanh, "sigmoid": tf.sigmoid, "relu": tf.nn.relu, "elu": tf.nn.elu, "softmax": tf.nn.softmax}
    return simple[name](x)
