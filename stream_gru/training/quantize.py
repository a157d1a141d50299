"""The step of one stream as a LiteRT flatbuffer with 8-bit matrix products, for a microcontroller.

    step  x (1, I), h (1, S) float32 -> y (1, K), state (1, S) float32     explicit state, engineering units

int8:    every matrix product: kernels (one scale for each output column), operands and results.
float32: inputs and outputs, scaling, calendar inputs, embeddings, sums, gates and activations, the mix of old and new
         state, the state itself, the last value a residual forecast starts from, and the probabilities.

Decision: the products hold nearly all weights and take nearly all time, and their errors do not add up over steps.  The
rest stays in float32, as each part was measured to cost accuracy: raw engineering units lose the small channels beside
the large ones; a gate of 8 bits is at most 255/256, which forgets everything within a few hundred steps; a state of 8
bits loses slow changes.  On the sample pumps everything in int8 reduced accuracy from 96.7 % to 81.0 %.

Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
CVPR 2018, arXiv:1712.05877.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version

import numpy as np
import tensorflow as tf

from stream_gru.core.errors import ParityError
from stream_gru.core.plugins import suppress_native_stderr
from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32, I64
from stream_gru.model.keras.litert_graph import StepGraph, Tensor, column_blocks, dense, input_spec, weights_module
from stream_gru.model.manifest import Manifest
from stream_gru.training.splits import Segment

IN_INT8 = "matrix products: kernels (one scale for each column), operands and results"
IN_FLOAT32 = "inputs, outputs, scaling, embeddings, sums, activations, state, last values, probabilities"

# All operations of a step except FULLY_CONNECTED; the quantizer leaves them in float32.
_FLOAT_OPERATIONS = (
    "ABS", "ADD", "CAST", "CONCATENATION", "DIV", "ELU", "EXP", "GATHER", "LOG", "LOGISTIC", "MAXIMUM", "MINIMUM",
    "MUL", "NEG", "ONE_HOT", "REDUCE_MAX", "RELU", "RELU6", "RELU_0_TO_1", "RESHAPE", "SLICE", "SOFTMAX", "SPLIT",
    "SQUEEZE", "STRIDED_SLICE", "SUB", "SUM", "TANH",
)  # fmt: skip
_LARGEST = float(np.finfo(np.float32).max)


def quantized_step(manifest: Manifest, weights: dict[str, F32], x: F32, h: F32) -> bytes:
    """Return the flatbuffer; ``x`` (N, I) and ``h`` (N, S) are samples and the states before them, for calibration."""
    module = weights_module(weights)
    graph = _ProductGraph(manifest, module.weights)
    ports = input_spec(1, manifest.input_size, "x"), input_spec(1, manifest.state_size, "h")
    step = tf.function(graph.step).get_concrete_function(*ports)

    def pairs() -> Iterator[tuple[str, dict[str, F32]]]:
        for row in range(len(x)):
            yield "step", {"x": x[row : row + 1], "h": h[row : row + 1]}

    with tempfile.TemporaryDirectory() as folder, suppress_native_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own interpreter warns of its deprecation
        tf.saved_model.save(module, folder, signatures={"step": step})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["step"])
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = pairs
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
        # The only public way to keep operations in float.
        options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(_FLOAT_OPERATIONS))
        debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, debug_options=options)
        content = bytes(debugger.get_nondebug_quantized_model())
    _require_int8(manifest, weights, content)
    return content


def _require_int8(manifest: Manifest, weights: dict[str, F32], content: bytes) -> None:
    """Raise ParityError unless every kernel is stored in int8: TensorFlow versions may quantize differently.

    Tensors of one row are not counted, as operands have one row too.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    tensors = Interpreter(model_content=content, experimental_op_resolver_type=plain).get_tensor_details()
    shapes = [tensor["shape"] for tensor in tensors if tensor["dtype"] == np.int8]
    found = sum(int(np.prod(shape)) for shape in shapes if len(shape) == 2 and shape[0] > 1)
    wanted = sum(_wide(width, size) for width, size in _kernels(manifest, weights))
    if found < wanted:
        raise ParityError(
            f"tflite-int8: TensorFlow {version('tensorflow')} left {wanted - found:,} of {wanted:,} weights of the"
            " matrix products in float32; nothing was written; try another version of TensorFlow"
        )


def _kernels(manifest: Manifest, weights: dict[str, F32]) -> Iterator[tuple[int, int]]:
    """Columns and rows of each matrix product of a step."""
    for layer in manifest.layers:
        for block in column_blocks(layer):
            columns = sum(b - a for a, b in block)
            for part in ("kernel", "recurrent_kernel"):
                yield columns, len(weights[f"{layer.name}/{part}"])
    for head in ("forecast", "classes"):
        if f"{head}/kernel" in weights:
            rows, columns = weights[f"{head}/kernel"].shape
            yield columns, rows


def _wide(columns: int, rows: int) -> int:
    return columns * rows if columns > 1 else 0


class _ProductGraph(StepGraph):
    """The step as a graph in which the converter quantizes only the matrix products."""

    def _scale(self, x: Tensor) -> Tensor:
        # The minimum changes no number; it keeps the converter from fusing the scaling with the next product.
        return tf.minimum(super()._scale(x), _LARGEST)

    def _heads(self, h: Tensor, scaled: Tensor) -> Tensor:
        # As above; without it the products of the heads of stacked layers stay in float.
        return super()._heads(tf.minimum(h, _LARGEST), scaled)

    def _last_values(self, scaled: Tensor, column: I64) -> Tensor:
        return tf.gather(scaled, column.astype(np.int32), axis=1)

    def _probabilities(self, h: Tensor, activation: str) -> Tensor:
        # Written out, as the quantizer rounds the results of softmax and sigmoid to 1/256; the minimum changes no
        # number and keeps the converter from recognizing them.
        logits = dense(h, self.w, "classes")
        if activation == "softmax":
            exponential = tf.exp(logits - tf.reduce_max(logits, axis=1, keepdims=True))
            return tf.minimum(exponential, 1.0) / tf.reduce_sum(exponential, axis=1, keepdims=True)
        second = 1.0 / tf.minimum(1.0 + tf.exp(-logits), _LARGEST)
        return second if activation == "sigmoid" else tf.concat([1.0 - second, second], axis=1)


def calibration_pairs(
    engine: Engine, segments: Sequence[Segment], window: int, pairs: int, steps: int, seed: int = 0
) -> tuple[F32, F32, int]:
    """Stream segments; return samples (N, I), the states before them (N, S), and the number of steps streamed.

    At most ``pairs`` samples, drawn by ``seed`` over at most ``steps`` steps of segments that are drawn as well;
    ``window`` > 0: the state is reset every ``window`` steps.
    """
    rng = np.random.default_rng(seed)
    pieces = _pieces(segments, window, steps, rng)
    ends = np.cumsum([len(piece) for piece in pieces])
    chosen = np.sort(rng.choice(ends[-1], min(pairs, int(ends[-1])), replace=False))
    xs, hs = [], []
    for piece, end in zip(pieces, ends.tolist(), strict=True):
        state, done = engine.initial_state(1)[0], 0
        first = end - len(piece)
        for at in (chosen[(chosen >= first) & (chosen < end)] - first).tolist():
            if at > done:
                _, state = engine.scan(np.ascontiguousarray(piece[done:at]), state)
            xs.append(piece[at])
            hs.append(state)
            done = at
    return np.stack(xs), np.stack(hs), int(ends[-1])


def _pieces(segments: Sequence[Segment], window: int, steps: int, rng: np.random.Generator) -> list[F32]:
    """Inputs from a reset on, in random order, together at most ``steps`` long."""
    between_resets = [
        segment.x[first : first + (window or len(segment))]
        for segment in segments
        for first in range(0, len(segment), window or len(segment))
    ]
    share = max(1024, steps // len(between_resets))
    pieces: list[F32] = []
    left = steps
    for index in rng.permutation(len(between_resets)).tolist():
        if left <= 0:
            break
        pieces.append(between_resets[index][: min(share, left)])
        left -= len(pieces[-1])
    return pieces


class StepEngine:
    """An `Engine` on a flatbuffer whose only signature is a step of one stream: it computes row by row."""

    name = "litert-int8"

    def __init__(self, manifest: Manifest, content: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.input_size, self.state_size = manifest.input_size, manifest.state_size
        self.output_size = manifest.output_size
        with suppress_native_stderr():
            self._step = Interpreter(model_content=content, num_threads=1).get_signature_runner("step")
            self._step(x=np.zeros((1, self.input_size), np.float32), h=self.initial_state(1))

    def initial_state(self, n: int) -> F32:
        """Return zeros, (n, S)."""
        return np.zeros((n, self.state_size), np.float32)

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance B streams by one sample: ``(B, I), (B, S) -> (B, K), (B, S)``."""
        y, state = np.empty((len(x), self.output_size), np.float32), np.empty_like(h)
        for row in range(len(x)):
            out = self._step(x=x[row : row + 1], h=h[row : row + 1])
            y[row], state[row] = out["y"][0], out["state"][0]
        return y, state

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance one stream by T samples: ``(T, I), (S,) -> (T, K), (S,)``."""
        y, state = np.empty((len(x), self.output_size), np.float32), h[None]
        for row in range(len(x)):
            out = self._step(x=x[row : row + 1], h=state)
            y[row], state = out["y"][0], out["state"]
        return y, state[0]
