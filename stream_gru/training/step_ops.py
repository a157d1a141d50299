"""One step of each recurrent cell as TensorFlow operations that convert to LiteRT builtin operators.

Semantics and memory layout are those of Keras: gates in the order z, r, h (GRU), i, f, c, o (LSTM).
Source: Cho et al. 2014, arXiv:1406.1078 (GRU); Hochreiter and Schmidhuber 1997 with forget gates (LSTM).
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from stream_gru.bundle import Layer
from stream_gru.engines.activations import SELU_ALPHA, SELU_SCALE

Tensor = Any  # tensorflow ships no types
Weights = dict[str, Tensor]


def project(layer: Layer, w: Weights, x: Tensor) -> Tensor:
    """The part of a step that does not recur: ``x @ kernel + input bias``, (rows, G*U)."""
    y = tf.matmul(x, w[f"{layer.name}/kernel"])
    if not layer.use_bias:
        return y
    bias = w[f"{layer.name}/bias"]
    return tf.nn.bias_add(y, bias[0] if len(layer.bias_shape) == 2 else bias)


def cell_step(layer: Layer, w: Weights, projected: Tensor, state: Tensor) -> Tensor:
    """Advance one layer: ``projected`` (B, G*U) and its state (B, U or 2U) give the new state."""
    return {"gru": _gru, "lstm": _lstm, "simple_rnn": _simple_rnn}[layer.cell](layer, w, projected, state)


def _gru(layer: Layer, w: Weights, projected: Tensor, h: Tensor) -> Tensor:
    u = layer.units
    kernel = w[f"{layer.name}/recurrent_kernel"]
    if layer.reset_after:
        recurrent = tf.matmul(h, kernel)
        if layer.use_bias:
            recurrent = tf.nn.bias_add(recurrent, w[f"{layer.name}/bias"][1])
    else:
        recurrent = tf.matmul(h, kernel[:, : 2 * u])
    gates = tf_activation(layer.recurrent_activation, projected[:, : 2 * u] + recurrent[:, : 2 * u])
    z, r = gates[:, :u], gates[:, u:]
    inner = r * recurrent[:, 2 * u :] if layer.reset_after else tf.matmul(r * h, kernel[:, 2 * u :])
    candidate = tf_activation(layer.activation, projected[:, 2 * u :] + inner)
    return z * h + (1.0 - z) * candidate


def _lstm(layer: Layer, w: Weights, projected: Tensor, state: Tensor) -> Tensor:
    u = layer.units
    h, c = state[:, :u], state[:, u:]
    total = projected + tf.matmul(h, w[f"{layer.name}/recurrent_kernel"])
    i_f = tf_activation(layer.recurrent_activation, total[:, : 2 * u])
    o = tf_activation(layer.recurrent_activation, total[:, 3 * u :])
    c = i_f[:, u:] * c + i_f[:, :u] * tf_activation(layer.activation, total[:, 2 * u : 3 * u])
    return tf.concat([o * tf_activation(layer.activation, c), c], axis=1)


def _simple_rnn(layer: Layer, w: Weights, projected: Tensor, h: Tensor) -> Tensor:
    return tf_activation(layer.activation, projected + tf.matmul(h, w[f"{layer.name}/recurrent_kernel"]))


def tf_activation(name: str, x: Tensor) -> Tensor:
    """Apply an activation by its Keras name, in operations LiteRT has (no expm1, no log1p)."""
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
