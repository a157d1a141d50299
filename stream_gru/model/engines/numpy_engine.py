"""Engine in numpy: needs no further package; equal to the other engines within rounding.

Semantics and layouts are those of Keras: gates in the order z, r, h (GRU), i, f, c, o (LSTM).
The order of summation in BLAS depends on the number of rows, so the last bits of results depend on the batch size.

Source: Cho et al. 2014, arXiv:1406.1078 (GRU); Hochreiter and Schmidhuber 1997 (LSTM); Elman 1990 (simple RNN).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.registry import EngineBase
from stream_gru.model.manifest import Categorical, Layer

_ONE = np.float32(1)
_BLOCK = 4096  # rows of a scan that are projected at once: limits the memory

Cell = Callable[[F32, F32], F32]


class NumpyEngine(EngineBase):
    """Engine in plain numpy."""

    name = "numpy"

    def __init__(self, bundle: Bundle) -> None:
        manifest, self._w = bundle.manifest, bundle.weights
        super().__init__(manifest)
        self._channels, self._numeric = len(manifest.channels), manifest.numeric_index
        self._categorical = [(part, _vectors(part, self._w)) for part in manifest.categorical]
        self._layers = manifest.layers
        self._cells = [make_cell(layer, self._w) for layer in manifest.layers]
        ends = np.cumsum([0, *(layer.state_size for layer in manifest.layers)]).tolist()
        self._parts = [slice(a, b) for a, b in pairwise(ends)]
        self._forecast, self._classes = manifest.forecast, manifest.classes
        column = np.repeat(manifest.target_index, manifest.forecast_size // max(1, len(manifest.target_index)))
        self._column = column.astype(np.intp)  # the target channel of each forecast output
        self._out_scale, self._out_mean = self._w["scaling/scale"][self._column], self._w["scaling/mean"][self._column]

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance B streams by one sample: ``(B, I), (B, S) -> (B, K), (B, S)``.  Raises ValueError."""
        self._check_step(x, h)
        state = np.empty_like(h, order="C")
        with np.errstate(all="ignore"):
            scaled = self._scale(x)
            rows = self._features(scaled, x)
            for layer, cell, part in zip(self._layers, self._cells, self._parts, strict=True):
                state[:, part] = cell(self._project(layer, rows), h[:, part])
                rows = state[:, part][:, : layer.units]
            return self._heads(rows, scaled), state

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance one stream by T samples: ``(T, I), (S,) -> (T, K), (S,)``.  Raises ValueError."""
        self._check_scan(x, h)
        y = np.empty((len(x), self.output_size), np.float32)
        state = np.array(h)
        with np.errstate(all="ignore"):
            for start in range(0, len(x), _BLOCK):
                block = slice(start, start + _BLOCK)
                y[block] = self._scan_block(x[block], state)
        return y, state

    def _scan_block(self, x: F32, state: F32) -> F32:
        """Advance ``state`` (S,) in place, layer by layer; projections and heads run once over all rows."""
        scaled = self._scale(x)
        rows = self._features(scaled, x)
        for layer, cell, part in zip(self._layers, self._cells, self._parts, strict=True):
            projected = self._project(layer, rows)
            rows = np.empty((len(x), layer.units), np.float32)
            h = state[None, part]
            for t in range(len(x)):
                h = cell(projected[t : t + 1], h)
                rows[t] = h[0, : layer.units]
            state[part] = h[0]
        return self._heads(rows, scaled)

    def _scale(self, x: F32) -> F32:
        """All channels in scaled units, (rows, C); categories unchanged."""
        return (x[:, : self._channels] - self._w["scaling/mean"]) / self._w["scaling/scale"]

    def _features(self, scaled: F32, x: F32) -> F32:
        """Inputs of the first layer: quantities, calendar inputs, then a vector for each category."""
        if not self._categorical and self._channels == self.input_size:
            return scaled
        vectors = [vector(scaled[:, part.index]) for part, vector in self._categorical]
        return np.concatenate([scaled[:, self._numeric], x[:, self._channels :], *vectors], axis=1)

    def _project(self, layer: Layer, x: F32) -> F32:
        """The non-recurrent part of a step: ``x @ kernel + input bias``, (rows, G*U)."""
        projected = x @ self._w[f"{layer.name}/kernel"]
        if layer.use_bias:
            projected += self._w[f"{layer.name}/bias"].reshape(-1, layer.gates * layer.units)[0]
        return projected

    def _heads(self, h: F32, scaled: F32) -> F32:
        parts = list(self._head_parts(h, scaled))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _head_parts(self, h: F32, scaled: F32) -> Iterator[F32]:
        w = self._w
        if self._forecast is not None:
            y = h @ w["forecast/kernel"] + w["forecast/bias"]
            if self._forecast.residual:
                y += scaled.take(self._column, axis=1)
            yield y * self._out_scale + self._out_mean
        if self._classes is not None:
            logits = h @ w["classes/kernel"] + w["classes/bias"]
            yield _PROBABILITIES[self._classes.activation](logits)


def _logistic(logits: F32) -> F32:
    """Probabilities of both labels, (rows, 2), from the logit of the second."""
    second = sigmoid(logits)
    return np.concatenate([_ONE - second, second], axis=1)


def _vectors(part: Categorical, w: dict[str, F32]) -> Callable[[F32], F32]:
    """Return ``codes (B,) -> vectors (B, E)``; codes are clipped to the table."""
    table = w[part.table] if part.units else None

    def look_up(codes: F32) -> F32:
        index = np.clip(np.nan_to_num(codes, nan=0.0), 0, part.categories - 1).astype(np.int64)
        if table is not None:
            return table[index]
        return (index[:, None] == np.arange(part.categories)).astype(np.float32)

    return look_up


def make_cell(layer: Layer, w: dict[str, F32]) -> Cell:
    """Return ``(projected (B, G*U), state (B, U or 2U)) -> new state`` for one recurrent layer."""
    kernel = w[f"{layer.name}/recurrent_kernel"]
    if layer.cell == "lstm":
        return _lstm(layer, kernel)
    if layer.cell == "simple_rnn":
        return _simple_rnn(layer, kernel)
    if layer.reset_after:
        return _gru_reset_after(layer, kernel, w[f"{layer.name}/bias"][1] if layer.use_bias else np.float32(0))
    return _gru_reset_before(layer, kernel)


def _gru_reset_after(layer: Layer, kernel: F32, bias: F32 | np.float32) -> Cell:
    u, activation, gate = layer.units, ACTIVATIONS[layer.activation], ACTIVATIONS[layer.recurrent_activation]

    def cell(projected: F32, h: F32) -> F32:
        recurrent: F32 = h @ kernel + bias
        z_r = gate(projected[:, : 2 * u] + recurrent[:, : 2 * u])
        z = z_r[:, :u]
        inner: F32 = z_r[:, u:] * recurrent[:, 2 * u :]
        candidate = activation(projected[:, 2 * u :] + inner)
        return np.asarray(z * h + (_ONE - z) * candidate, np.float32)

    return cell


def _gru_reset_before(layer: Layer, kernel: F32) -> Cell:
    u, activation, gate = layer.units, ACTIVATIONS[layer.activation], ACTIVATIONS[layer.recurrent_activation]
    gates = np.ascontiguousarray(kernel[:, : 2 * u])
    inner = np.ascontiguousarray(kernel[:, 2 * u :])

    def cell(projected: F32, h: F32) -> F32:
        z_r = gate(projected[:, : 2 * u] + h @ gates)
        z = z_r[:, :u]
        kept: F32 = z_r[:, u:] * h
        candidate = activation(projected[:, 2 * u :] + kept @ inner)
        return np.asarray(z * h + (_ONE - z) * candidate, np.float32)

    return cell


def _lstm(layer: Layer, kernel: F32) -> Cell:
    u, activation, gate = layer.units, ACTIVATIONS[layer.activation], ACTIVATIONS[layer.recurrent_activation]

    def cell(projected: F32, state: F32) -> F32:
        total = projected + state[:, :u] @ kernel
        i_f, o = gate(total[:, : 2 * u]), gate(total[:, 3 * u :])
        c = i_f[:, u:] * state[:, u:] + i_f[:, :u] * activation(total[:, 2 * u : 3 * u])
        return np.concatenate([o * activation(c), c], axis=1)

    return cell


def _simple_rnn(layer: Layer, kernel: F32) -> Cell:
    activation = ACTIVATIONS[layer.activation]

    def cell(projected: F32, h: F32) -> F32:
        return activation(projected + h @ kernel)

    return cell


ActivationFunction = Callable[[F32], F32]

HALF = np.float32(0.5)
ONE = np.float32(1)
SELU_ALPHA = np.float32(1.6732632423543772)
SELU_SCALE = np.float32(1.0507009873554805)


def sigmoid(x: F32) -> F32:
    """1 / (1 + exp(-x)), computed with tanh, which cannot overflow."""
    y = np.multiply(x, HALF)
    np.tanh(y, out=y)
    y *= HALF
    y += HALF
    return y


def softmax(x: F32) -> F32:
    """Probabilities along the last axis; the maximum is subtracted first to avoid overflow."""
    y: F32 = np.exp(x - x.max(axis=-1, keepdims=True))
    y /= y.sum(axis=-1, keepdims=True)
    return y


def _tanh(x: F32) -> F32:
    return np.tanh(x)


def _relu(x: F32) -> F32:
    return np.maximum(x, np.float32(0))


def _linear(x: F32) -> F32:
    return np.array(x)


def _hard_sigmoid(x: F32) -> F32:
    return np.clip(x / np.float32(6) + HALF, np.float32(0), ONE)


def _softsign(x: F32) -> F32:
    return np.asarray(x / (ONE + np.abs(x)), np.float32)


def _softplus(x: F32) -> F32:
    return np.logaddexp(x, np.float32(0))


def _elu(x: F32) -> F32:
    return np.where(x > 0, x, np.expm1(np.minimum(x, np.float32(0))))


def _selu(x: F32) -> F32:
    negative = SELU_ALPHA * np.expm1(np.minimum(x, np.float32(0)))
    return np.asarray(SELU_SCALE * np.where(x > 0, x, negative), np.float32)


def _swish(x: F32) -> F32:
    return np.multiply(x, sigmoid(x))


ACTIVATIONS: dict[str, ActivationFunction] = {
    "tanh": _tanh,
    "sigmoid": sigmoid,
    "relu": _relu,
    "linear": _linear,
    "hard_sigmoid": _hard_sigmoid,
    "softsign": _softsign,
    "softplus": _softplus,
    "elu": _elu,
    "selu": _selu,
    "swish": _swish,
}

_PROBABILITIES: dict[str, Callable[[F32], F32]] = {"softmax": softmax, "sigmoid": sigmoid, "logistic": _logistic}
