"""One step of each recurrent cell as TensorFlow operations that convert to LiteRT builtin operators.

Semantics and memory layout are those of Keras: gates in the order z, r, h (GRU), i, f, c, o (LSTM).
Source: Cho et al. 2014, arXiv:1406.1078 (GRU); Hochreiter and Schmidhuber 1997 with forget gates (LSTM).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from stream_gru.model.engines.activations import SELU_ALPHA, SELU_SCALE
from stream_gru.model.manifest import Layer

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
