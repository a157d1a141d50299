"""Engine on LiteRT: runs the bundle's flatbuffer with one interpreter per batch size.

Decision: one interpreter per size, and batches are split and padded to these sizes.  Resizing an interpreter costs more
than hundreds of steps.
Decision: XNNPACK, LiteRT's default, stays on; LiteRT's own kernels are slower and use another order of summation for
one row than for many.  On x86-64 the bits of a row depend neither on the batch size nor on its position.  On 64-bit ARM
XNNPACK computes a single row with another kernel than several, and a scan differs from its steps.  The constructor
therefore compares them on random samples; where one row differs it is padded to two, and where a scan differs it is a
loop of steps.  This costs a quarter of a call of one row, and most of the speed of a scan (measured on x86-64).
Decision: the interpreter's native object is called directly.  The public signature runner resizes and allocates at
every call, which takes twice as long as the step; it is used if a LiteRT version lacks the native object.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from stream_gru.core.errors import BundleError
from stream_gru.core.plugins import suppress_native_stderr
from stream_gru.core.types import F32
from stream_gru.model.bundle import TFLITE, Bundle, random_samples
from stream_gru.model.engines.registry import EngineBase

log = logging.getLogger(__name__)

# Padded batch size -> smallest number of rows it is used for, from the measured costs of a call and of a row.
SIZES = {1024: 800, 512: 400, 128: 88, 32: 17, 8: 3, 1: 1}
_REFERENCE = 8  # the batch size whose bits count
_COMPARED = 64  # samples
_NATIVE = ("SetTensor", "GetTensor", "Invoke", "AllocateTensors", "ResizeInputTensor")

Call = Callable[[F32, F32], tuple[F32, F32]]


class LitertEngine(EngineBase):
    """Engine on a LiteRT flatbuffer with the signatures `step` and `scan`; not thread-safe.

    Raises BundleError for a bundle without a flatbuffer, or with one that does not fit the manifest.
    """

    name = "litert"

    def __init__(self, bundle: Bundle) -> None:
        from ai_edge_litert.interpreter import Interpreter

        if bundle.tflite is None:
            raise BundleError(f"{bundle.path}: expected {TFLITE} for the engine litert, found none; use numpy")
        super().__init__(bundle.manifest)
        self._path = bundle.path / TFLITE
        self._content = bundle.tflite
        self._interpreter_class = Interpreter
        self._steps: dict[int, Call] = {}
        self._x_one, self._h_one = (1, self.input_size), (1, self.state_size)
        with suppress_native_stderr():  # "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.", once per process
            self._one = self._sized_step(1)
            self._scan, self.scan_steps = self._open("scan", None)
            self._make_exact(random_samples(bundle.manifest, bundle.weights)[: max(_COMPARED, self.scan_steps)])

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance B streams by one sample: ``(B, I), (B, S) -> (B, K), (B, S)``.  Raises ValueError."""
        if x.shape == self._x_one and h.shape == self._h_one and x.dtype == h.dtype == np.float32:
            return self._one(x, h)
        self._check_step(x, h)
        rows = len(x)
        y = np.empty((rows, self.output_size), np.float32)
        state = np.empty((rows, self.state_size), np.float32)
        start = 0
        while start < rows:
            size = batch_size(rows - start)
            size = self.one_row if size == 1 else size
            end = min(start + size, rows)
            part_y, part_state = self._padded(size, x[start:end], h[start:end])
            y[start:end], state[start:end] = part_y[: end - start], part_state[: end - start]
            start = end
        return y, state

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance one stream by T samples: ``(T, I), (S,) -> (T, K), (S,)``.  Raises ValueError."""
        self._check_scan(x, h)
        y = np.empty((len(x), self.output_size), np.float32)
        state = np.array(h[None])
        long = len(x) - len(x) % self.scan_steps if self.exact_scan else 0
        for start in range(0, long, self.scan_steps):
            end = start + self.scan_steps
            y[start:end], state = self._scan(x[start:end], state)
        for index in range(long, len(x)):
            y[index : index + 1], state = self._one(x[index : index + 1], state)
        return y, state[0]

    def _make_exact(self, x: F32) -> None:
        """Make one row and a scan give the bits of a batch, on ``x`` (T, I).  Raises BundleError where they cannot."""
        expected, h = np.empty((len(x), self.output_size), np.float32), self.initial_state(len(x) + 1)
        for t in range(len(x)):
            y, state = self._padded(_REFERENCE, x[t : t + 1], h[t : t + 1])
            expected[t], h[t + 1] = y[0], state[0]
        self._pad_one_row_where_it_differs(x, expected, h)
        count = len(x) - len(x) % self.scan_steps
        self.exact_scan = True
        scanned, last = self.scan(x[:count], h[0])
        self.exact_scan = _same_bits(scanned, expected[:count]) and _same_bits(last, h[count])
        if self.one_row != 1 or not self.exact_scan:
            log.info("engine litert: %s", self.exactness)

    def _pad_one_row_where_it_differs(self, x: F32, expected: F32, h: F32) -> None:
        for self.one_row in (1, 2, _REFERENCE):
            if self.one_row > 1:
                self._one = self._one_padded
            rows = [self._one(x[t : t + 1], h[t : t + 1]) for t in range(len(x))]
            outputs, states = (np.concatenate(column) for column in zip(*rows, strict=True))
            if _same_bits(outputs, expected) and _same_bits(states, h[1:]):
                return
        raise BundleError(f"{self._path}: equal rows of a batch give unequal outputs on this processor; use numpy")

    @property
    def exactness(self) -> str:
        """How rows get the same bits in every batch on this processor."""
        one = "not padded" if self.one_row == 1 else f"padded to {self.one_row}"
        scan = "is one call" if self.exact_scan else "is a loop of steps"
        return f"outputs do not depend on the batch: a single row is {one}, a scan {scan}"

    def _one_padded(self, x: F32, h: F32) -> tuple[F32, F32]:
        y, state = self._padded(self.one_row, x, h)
        return y[:1], state[:1]

    def _padded(self, size: int, x: F32, h: F32) -> tuple[F32, F32]:
        call = self._sized_step(size)
        missing = size - len(x)
        if not missing:
            return call(x, h)
        padded_x, padded_h = np.zeros((size, self.input_size), np.float32), self.initial_state(size)
        padded_x[: len(x)], padded_h[: len(h)] = x, h
        return call(padded_x, padded_h)

    def _sized_step(self, size: int) -> Call:
        if size not in self._steps:
            self._steps[size], _ = self._open("step", size)
        return self._steps[size]

    def _open(self, signature: str, rows: int | None) -> tuple[Call, int]:
        """Make an interpreter for one signature and batches of ``rows`` (None: the size in the flatbuffer)."""
        try:
            interpreter = self._interpreter_class(model_content=self._content, num_threads=1)
            runner = interpreter.get_signature_runner(signature)
            names = set(runner.get_input_details()), set(runner.get_output_details())
            if names != ({"x", "h"}, {"y", "state"}):
                msg = f"expected inputs x, h and outputs y, state, got {names}"
                raise ValueError(msg)
            rows = int(runner.get_input_details()["x"]["shape"][0]) if rows is None else rows
            call = _native_call(interpreter, signature, rows, self) or _public_call(runner)
            self._check_shapes(call, rows, 1 if signature == "scan" else rows)
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{self._path}: signature {signature}: {error}") from error
        return call, rows

    def _check_shapes(self, call: Call, rows: int, streams: int) -> None:
        """Run once on zeros, to reject the flatbuffer of another network.  Raises ValueError."""
        y, state = call(np.zeros((rows, self.input_size), np.float32), self.initial_state(streams))
        expected = (rows, self.output_size), (streams, self.state_size)
        if (y.shape, state.shape) != expected or rows < 1:
            msg = f"expected outputs of shape {expected} as in the manifest, got {(y.shape, state.shape)}"
            raise ValueError(msg)


def _same_bits(a: F32, b: F32) -> bool:
    return a.tobytes() == b.tobytes()


def batch_size(rows: int) -> int:
    """Batch size to compute next when ``rows`` (at least 1) are left; a smaller rest is padded to it.

    >>> [batch_size(n) for n in (1, 2, 3, 9, 17, 256, 5000)]
    [1, 1, 8, 8, 32, 128, 1024]
    """
    return next(size for size, fewest in SIZES.items() if rows >= fewest)


def _native_call(interpreter: Any, signature: str, rows: int, engine: LitertEngine) -> Call | None:
    """Bind one signature with five native calls per step; None if this LiteRT version lacks them.

    The returned arrays are copies.
    """
    native = getattr(interpreter, "_interpreter", None)
    if not all(hasattr(native, name) for name in (*_NATIVE, "GetSubgraphIndexFromSignature", "GetSignatureDefs")):
        return None
    assert native is not None  # noqa: S101 - for mypy
    graph = native.GetSubgraphIndexFromSignature(signature)
    tensors = native.GetSignatureDefs()[signature]
    x_index, h_index = tensors["inputs"]["x"], tensors["inputs"]["h"]
    y_index, state_index = tensors["outputs"]["y"], tensors["outputs"]["state"]
    streams = 1 if signature == "scan" else rows
    native.ResizeInputTensor(x_index, np.array([rows, engine.input_size], np.int32), True, graph)
    native.ResizeInputTensor(h_index, np.array([streams, engine.state_size], np.int32), True, graph)
    native.AllocateTensors(graph)
    set_tensor, invoke, get_tensor = native.SetTensor, native.Invoke, native.GetTensor

    def call(x: F32, h: F32) -> tuple[F32, F32]:
        set_tensor(x_index, x, graph)
        set_tensor(h_index, h, graph)
        invoke(graph)
        return get_tensor(y_index, graph), get_tensor(state_index, graph)

    return call


def _public_call(runner: Any) -> Call:
    """Bind one signature with LiteRT's public runner."""

    def call(x: F32, h: F32) -> tuple[F32, F32]:
        outputs = runner(x=x, h=h)
        return outputs["y"], outputs["state"]

    return call
