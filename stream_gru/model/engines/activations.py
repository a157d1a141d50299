"""The activations of recurrent layers in numpy, defined as in Keras.

Every function takes float32 of any shape and returns a new float32 array of that shape.  For finite input none
overflows unless the mathematical value does; callers set ``np.errstate`` for NaN and infinity.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stream_gru.core.types import F32

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
