"""Engine on onnxruntime: runs the graph of `stream_gru.model.engines.onnx_graph`, built from the weights.

onnxruntime guarantees no order of summation: with a simple RNN the last bits depend on the batch size.  With GRU and
LSTM they did not, and step and scan were equal, in onnxruntime 1.31 on x86-64.
Decision: this engine propagates NaN itself.  The recurrent operators replace it by a number, so the state would look
valid.
Decision: softplus is supported although onnxruntime's overflows above 88; the state is then not finite and is reset.
"""

from __future__ import annotations

import math

import numpy as np

from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.base import EngineBase
from stream_gru.model.engines.onnx_graph import onnx_model

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
