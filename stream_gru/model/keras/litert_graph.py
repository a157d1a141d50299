"""Write the network as a LiteRT flatbuffer with two signatures, `step` and `scan`, from the plain weights.

    step  x (B, I), h (B, S) -> y (B, K), state (B, S)     B streams by one sample, B free
    scan  x (T, I), h (1, S) -> y (T, K), state (1, S)     one stream by T = ``scan_steps`` samples, unrolled

Decision: the step is written out operation by operation as a ``tf.Module`` and goes through a SavedModel.
Converting a one-step Keras functional model through concrete functions gave a file without its weights (NaN).
Decision: in `scan` everything that does not recur (scaling, input projections, heads) is one operation over all T
rows; only the recurrent part is unrolled.  A row of a matrix product does not depend on the other rows, so the
results are those of `step` bit for bit, which the parity gate checks.
Decision: T is bounded by the weights.  XNNPACK packs a copy of the recurrent kernel for each unrolled step; once the
copies leave the second-level cache a scan gets slower (measured with 64 units: 1.3 us a sample for T = 16, 2.6 for 32).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from stream_gru.core.types import F32, I64
from stream_gru.model.keras.tf_cells import Tensor, cell_step, project, tf_activation
from stream_gru.model.manifest import Layer, Manifest
from stream_gru.model.optional_packages import suppress_native_stderr

MAX_SCAN_STEPS = 32
_CACHE_BYTES = 512 * 1024  # second-level cache of a core of the gateways this is for


def export_tflite(manifest: Manifest, weights: dict[str, F32], scan_steps: int | None = None) -> bytes:
    """Return the flatbuffer of the network: float32, builtin operators only.

    ``weights`` are named and shaped as in `stream_gru.model.bundle`; ``scan_steps`` None: see `default_scan_steps`.
    Raises ValueError when ``scan_steps`` < 1.
    """
    if scan_steps is None:
        scan_steps = default_scan_steps(manifest)
    if scan_steps < 1:
        msg = f"scan_steps: expected a positive integer, got {scan_steps}"
        raise ValueError(msg)
    module = module_of(weights)
    graph = StepGraph(manifest, module.weights)
    inputs, state = manifest.input_size, manifest.state_size
    step = tf.function(graph.step).get_concrete_function(port(None, inputs, "x"), port(None, state, "h"))
    scan = tf.function(graph.scan).get_concrete_function(port(scan_steps, inputs, "x"), port(1, state, "h"))
    with tempfile.TemporaryDirectory() as folder, suppress_native_stderr():
        tf.saved_model.save(module, folder, signatures={"step": step, "scan": scan})
        return _convert(Path(folder))


def module_of(weights: dict[str, F32]) -> Any:
    """A ``tf.Module`` that owns the weights, by their names in the bundle, as ``.weights``."""
    module = tf.Module()
    module.weights = {name: tf.Variable(value, name=name) for name, value in weights.items()}
    return module


def default_scan_steps(manifest: Manifest) -> int:
    """The power of two, at most 32, whose unrolled copies of the recurrent kernels fit into the cache."""
    one = max(4 * layer.gates * layer.units**2 for layer in manifest.layers)
    fitting = max(1, _CACHE_BYTES // one)
    return min(MAX_SCAN_STEPS, 1 << (fitting.bit_length() - 1))


def port(rows: int | None, columns: int, name: str) -> Any:
    """The specification of an input of a signature, (rows, columns) float32."""
    return tf.TensorSpec([rows, columns], tf.float32, name=name)


def _convert(folder: Path) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["step", "scan"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    return bytes(converter.convert())


class StepGraph:
    """The network as TensorFlow operations; ``w`` holds the variables by their names in the bundle."""

    def __init__(self, manifest: Manifest, w: dict[str, Tensor]) -> None:
        self.manifest = manifest
        self.w = w

    def step(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        """B streams by one sample."""
        return self._run(x, h, unroll=1)

    def scan(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        """One stream by as many samples as ``x`` has rows."""
        return self._run(x, h, unroll=int(x.shape[0]))

    def _run(self, x: Tensor, h: Tensor, unroll: int) -> dict[str, Tensor]:
        scaled = self._scale(x)
        rows, states, start = self._features(scaled, x), [], 0
        for layer in self.manifest.layers:
            state = h[:, start : start + layer.state_size]
            start += layer.state_size
            rows, state = self._layer(layer, rows, state, unroll)
            states.append(state)
        return {"y": self._heads(rows, scaled), "state": _joined(states, axis=1)}

    def _scale(self, x: Tensor) -> Tensor:
        """All channels from engineering to scaled units; categories pass as they are."""
        channels = len(self.manifest.channels)
        return (x[:, :channels] - self.w["scaling/mean"]) / self.w["scaling/scale"]

    def _features(self, scaled: Tensor, x: Tensor) -> Tensor:
        """What the first layer reads: quantities, calendar inputs, then a vector for each category."""
        channels, numeric = len(self.manifest.channels), self.manifest.numeric_index
        parts = [scaled] if len(numeric) == channels else [scaled[:, c : c + 1] for c in numeric]
        if self.manifest.calendar:
            parts.append(x[:, channels:])
        for part in self.manifest.categorical:
            # Cut off at the ends of the table after the cast: a NaN becomes a number then, and none reads outside it.
            codes = tf.clip_by_value(tf.cast(x[:, part.index], tf.int32), 0, part.categories - 1)
            table = self.w[part.table] if part.units else None
            parts.append(tf.one_hot(codes, part.categories) if table is None else tf.gather(table, codes))
        return _joined(parts, axis=1)

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
        return _joined(outputs, axis=1)

    def _forecast(self, h: Tensor, scaled: Tensor) -> Tensor:
        """Dense in scaled units, plus the last scaled value with ``residual``; then engineering units."""
        assert self.manifest.forecast is not None  # noqa: S101 - told to mypy
        y = dense(h, self.w, "forecast")
        targets = self.manifest.target_index
        column = np.repeat(targets, self.manifest.forecast_size // len(targets))
        if self.manifest.forecast.residual:
            y = y + self._last_values(scaled, column)
        return y * tf.gather(self.w["scaling/scale"], column) + tf.gather(self.w["scaling/mean"], column)

    def _last_values(self, scaled: Tensor, column: I64) -> Tensor:
        """The scaled value of the target of each forecast output, (rows, D * H * Q)."""
        # A product with zeros and ones: exact, and unlike a gather it stays within XNNPACK.
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
    """The products and biases of a head."""
    return tf.nn.bias_add(tf.matmul(h, w[f"{name}/kernel"]), w[f"{name}/bias"])


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=axis)
