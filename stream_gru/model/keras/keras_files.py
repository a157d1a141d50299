"""The plain sequence model (B, T, I) -> (B, T, K) as a file that Keras loads without this package.

Decision: the HDF5 file contains layers only.  Keras writes free operations (slices, ``take``, casts, sums) to its older
format but cannot read them back.  So columns are selected with Cropping1D between two Permutes and repeated with
UpSampling1D, a one-hot vector is an Embedding with the identity as table, and a category is clipped to its table by a
ReLU with a maximum.  Layers with weights have the names of `stream_gru.model.keras.network`.

As a SavedModel, which needs only TensorFlow to load, the network has three signatures:

    step      x (B, I), h (B, S)  -> y (B, K), state (B, S)   B streams by one sample
    scan      x (T, I), h (1, S)  -> y (T, K), state (1, S)   one stream by T samples, T free
    sequence  x (B, T, I)         -> y (B, T, K)              whole sequences from the initial state

Decision: `scan` is a loop over `step`, not unrolled as in the flatbuffer: TensorFlow's loops accept any length.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from stream_gru.core.errors import ParityError
from stream_gru.core.plugins import suppress_native_stderr
from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle, random_samples
from stream_gru.model.engines.registry import load_engine
from stream_gru.model.export.formats import ExportedFiles, ExportRequest
from stream_gru.model.keras.litert_graph import StepGraph, Tensor, input_spec, weights_module
from stream_gru.model.keras.network import NetworkLayers, build_network, load_weights
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.model.manifest import Categorical
from stream_gru.model.parity import CARRIED_TOLERANCE, scaled_difference

_CHECKED_STEPS = 64


def keras_file(request: ExportRequest) -> ExportedFiles:
    """A ``.keras`` file built from the weights.  Raises ParityError when it differs from the numpy engine."""
    weights = request.bundle.weights
    spec = NetworkSpec.from_manifest(request.bundle.manifest)
    model = build_network(spec, weights["scaling/mean"], weights["scaling/scale"], stateless=True)
    return {"": _saved(request.bundle, model, ".keras")}


def h5_file(request: ExportRequest) -> ExportedFiles:
    """An HDF5 file built from the weights.  Raises ParityError when it differs from the numpy engine."""
    weights = request.bundle.weights
    spec = NetworkSpec.from_manifest(request.bundle.manifest)
    return {"": _saved(request.bundle, layers_only(spec, weights["scaling/mean"], weights["scaling/scale"]), ".h5")}


def require_equal(bundle: Bundle, call: Callable[[F32], F32], name: str) -> None:
    """Compare ``call`` (1, T, I) -> (1, T, K) with the numpy engine on random samples.  Raises ParityError."""
    x = random_samples(bundle.manifest, bundle.weights)[:_CHECKED_STEPS]
    engine = load_engine("numpy", bundle)
    expected, _ = engine.scan(x, engine.initial_state(1)[0])
    worst = float(scaled_difference(bundle.manifest, bundle.weights, call(x[None])[0], expected).max())
    if worst > CARRIED_TOLERANCE:
        raise ParityError(
            f"{name}: expected the outputs of the bundle within {CARRIED_TOLERANCE:g} in scaled units,"
            f" the exported model differs by {worst:.3g}; nothing was written"
        )


def _saved(bundle: Bundle, model: keras.Model, suffix: str) -> bytes:
    """Save the model with the bundle's weights, load it again with plain Keras and compare."""
    load_weights(model, bundle.weights)
    with (
        tempfile.TemporaryDirectory() as folder,
        suppress_native_stderr(),
    ):  # Keras warns that HDF5 is a legacy format
        path = Path(folder) / f"model{suffix}"
        model.save(path)
        loaded = keras.models.load_model(path, compile=False)
        require_equal(bundle, lambda x: np.asarray(loaded(x), np.float32), suffix)
        return path.read_bytes()


def layers_only(spec: NetworkSpec, mean: F32, scale: F32) -> keras.Model:
    """The plain sequence model without free operations; arguments as in `build_network`."""
    layers = NetworkLayers(spec, mean, scale)
    x = keras.Input((None, spec.input_size), name="x")
    scaled = layers.shrink(layers.centre(_columns(x, 0, spec.channels)))
    sequence = _concatenated(_features(layers, scaled, x))
    for layer in layers.recurrent:
        sequence = layer(sequence)[0]
    parts = []
    if spec.forecast is not None:
        forecast = layers.forecast(sequence)
        if spec.forecast.residual:
            forecast = keras.layers.Add(name="forecast_residual")([forecast, _last_values(spec, scaled)])
        parts.append(layers.units(forecast))
    if spec.classes is not None:
        probabilities = layers.probabilities(layers.classes(sequence))
        if spec.classes.activation == "logistic":
            parts.append(keras.layers.Rescaling(-1.0, 1.0, name="probability_of_the_first")(probabilities))
        parts.append(probabilities)
    return keras.Model(x, _concatenated(parts), name="stream_gru")


def _features(layers: NetworkLayers, scaled: Any, x: Any) -> list[Any]:
    """Inputs of the first layer, as in `NetworkLayers`."""
    spec = layers.spec
    numeric = spec.numeric_index
    parts = [scaled] if len(numeric) == spec.channels else [_columns(scaled, c, c + 1) for c in numeric]
    if spec.calendar:
        parts.append(_columns(x, spec.channels, spec.input_size))
    return parts + [_vector(part, layers.embeddings.get(part.index), scaled) for part in spec.categorical]


def _vector(part: Categorical, embedding: Any, scaled: Any) -> Any:
    """The learnt or one-hot vector of a category, (B, T, E); an Embedding casts codes to integers itself.

    Taken from the scaled values, which equal the codes: Keras does not save a layer without a consumer.
    """
    if embedding is None:
        name = f"one_hot_{part.index}"
        embedding = keras.layers.Embedding(
            part.categories, part.categories, embeddings_initializer="identity", trainable=False, name=name
        )
    codes = keras.layers.ReLU(max_value=part.categories - 1)(_columns(scaled, part.index, part.index + 1))
    return keras.layers.Reshape((-1, part.width))(embedding(codes))


def _last_values(spec: NetworkSpec, scaled: Any) -> Any:
    """The scaled value of the target of each forecast output, (B, T, D * H * Q)."""
    targets = _concatenated([_columns(scaled, c, c + 1) for c in spec.target_index])
    times = spec.forecast_size // len(spec.target_index)
    return _transposed(keras.layers.UpSampling1D(times)(_transposed(targets)))


def _columns(x: Any, first: int, end: int) -> Any:
    """Columns ``first`` to ``end`` of (B, T, N)."""
    total = x.shape[-1]
    if (first, end) == (0, total):
        return x
    return _transposed(keras.layers.Cropping1D((first, total - end))(_transposed(x)))


def _transposed(x: Any) -> Any:
    """(B, T, N) to (B, N, T) and back."""
    return keras.layers.Permute((2, 1))(x)


def _concatenated(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else keras.layers.Concatenate(axis=-1)(parts)


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
