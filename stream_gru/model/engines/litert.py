"""Engine on LiteRT: runs the bundle's flatbuffer with one interpreter per batch size.

Decision: one interpreter per size, and batches are split and padded to these sizes.  Resizing an interpreter costs more
than hundreds of steps.
Decision: XNNPACK, LiteRT's default, stays on.  With it the bits of a row depend neither on the batch size nor on its
position; LiteRT's own kernels are slower and use another order of summation for one row than for many.
Decision: the interpreter's native object is called directly.  The public signature runner resizes and allocates at
every call, which takes twice as long as the step; it is used if a LiteRT version lacks the native object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stream_gru.core.errors import BundleError
from stream_gru.core.plugins import suppress_native_stderr
from stream_gru.core.types import F32
from stream_gru.model.bundle import TFLITE, Bundle
from stream_gru.model.engines.registry import EngineBase

# Padded batch size -> smallest number of rows it is used for, from the measured costs of a call and of a row.
SIZES = {1024: 800, 512: 400, 128: 88, 32: 17, 8: 3, 1: 1}
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
        long = len(x) - len(x) % self.scan_steps
        for start in range(0, long, self.scan_steps):
            end = start + self.scan_steps
            y[start:end], state = self._scan(x[start:end], state)
        for index in range(long, len(x)):
            y[index : index + 1], state = self._one(x[index : index + 1], state)
        return y, state[0]

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
