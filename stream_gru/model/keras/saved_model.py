"""The network as a TensorFlow SavedModel, which needs only TensorFlow to load.

    step      x (B, I), h (B, S)  -> y (B, K), state (B, S)   B streams by one sample
    scan      x (T, I), h (1, S)  -> y (T, K), state (1, S)   one stream by T samples, T free
    sequence  x (B, T, I)         -> y (B, T, K)              whole sequences from the initial state

Decision: `scan` is a loop over `step`, not unrolled as in the flatbuffer: TensorFlow's loops accept any length.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from stream_gru.model.export.formats import ExportedFiles, ExportRequest
from stream_gru.model.keras.keras_files import require_equal
from stream_gru.model.keras.litert_graph import StepGraph, input_spec, weights_module
from stream_gru.model.keras.tf_cells import Tensor
from stream_gru.model.optional_packages import suppress_native_stderr


def saved_model_files(request: ExportRequest) -> ExportedFiles:
    """All files of the SavedModel folder.  Raises ParityError when it differs from the numpy engine."""
    manifest = request.bundle.manifest
    module = weights_module(request.bundle.weights)
    graph = _LoopGraph(manifest, module.weights)
    inputs, state = manifest.input_size, manifest.state_size
    sequences = tf.TensorSpec([None, None, inputs], tf.float32, name="x")
    signatures = {
        "step": _traced(graph.step, input_spec(None, inputs, "x"), input_spec(None, state, "h")),
        "scan": _traced(graph.scan, input_spec(None, inputs, "x"), input_spec(1, state, "h")),
        "sequence": _traced(graph.sequence, sequences),
    }
    with tempfile.TemporaryDirectory() as name, suppress_native_stderr():
        folder = Path(name)
        tf.saved_model.save(module, name, signatures=signatures)
        loaded = tf.saved_model.load(name).signatures["sequence"]
        require_equal(request.bundle, lambda x: np.asarray(loaded(x=tf.constant(x))["y"]), "saved-model")
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _traced(function: Any, *inputs: Any) -> Any:
    return tf.function(function).get_concrete_function(*inputs)


class _LoopGraph(StepGraph):
    """The network with loops over time."""

    def scan(self, x: Tensor, h: Tensor) -> dict[str, Tensor]:
        """Advance one stream by as many samples as ``x`` has rows."""
        y, state = self._carry(x[:, None], h)
        return {"y": y[:, 0], "state": state}

    def sequence(self, x: Tensor) -> dict[str, Tensor]:
        """Outputs of whole sequences from the initial state."""
        h = tf.zeros([tf.shape(x)[0], self.manifest.state_size], tf.float32)
        y, _ = self._carry(tf.transpose(x, [1, 0, 2]), h)
        return {"y": tf.transpose(y, [1, 0, 2])}

    def _carry(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``(T, B, I), (B, S) -> (T, B, K), (B, S)``."""
        steps = tf.shape(x)[0]
        rows = tf.TensorArray(tf.float32, size=steps, element_shape=[None, self.manifest.output_size])

        def body(t: Tensor, h: Tensor, rows: Any) -> tuple[Tensor, Tensor, Any]:
            out = self.step(x[t], h)
            return t + 1, out["state"], rows.write(t, out["y"])

        _, state, rows = tf.while_loop(lambda t, *_: t < steps, body, (tf.constant(0), h, rows))
        return rows.stack(), state
