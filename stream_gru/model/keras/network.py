"""The network in Keras: one set of layers, wired as a sequence model, an explicit-state model and a training model.

    x ── (x - mean) * 1/scale ── recurrent_0 … ─┬─ forecast ── + last value ── * scale + mean ─┬─ outputs
                                                └─ classes ─── softmax or sigmoid ─────────────┘

It uses standard layers and operations only, so that a saved model loads in Keras without this package.  Weight names
and layouts are those of `stream_gru.model.bundle`; B batch, T steps, I inputs, S state numbers, K outputs.

Decision: the state is an input and an output of the graph, not `stateful=True`: then single rows can be reset.

Source: Cho et al. 2014 (GRU, arXiv:1406.1078); Hochreiter and Schmidhuber 1997 (LSTM); Elman 1990 (simple RNN).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from stream_gru.config.model_schema import LayerConfig, RegularizerConfig
from stream_gru.core.types import F32
from stream_gru.model.keras.spec import NetworkSpec

_WITH_WEIGHTS = ("embedding_", "recurrent_", "forecast", "classes")


@dataclass(frozen=True)
class Networks:
    """Models that share one set of weights.

    ``plain``     x (B, T, I) -> outputs (B, T, K), from the initial state; this one is saved
    ``explicit``  [x (B, T, I), h (B, S)] -> [outputs (B, T, K), h' (B, S)]
    ``trainer``   [x, h] -> a dict of "state" (B, S) and, for each head of the model,
                  "forecast" (B, T, D*H*Q) in scaled units, "logits" (B, T, L)
    """

    plain: keras.Model
    explicit: keras.Model
    trainer: keras.Model


def build_network(spec: NetworkSpec, scaling_mean: F32, scaling_scale: F32, stateless: bool) -> keras.Model:
    """Build one model of `Networks`: ``stateless`` the plain sequence model, otherwise the explicit-state one.

    ``scaling_mean, scaling_scale`` (C,) float32 in engineering units; the scale is never 0.
    """
    networks = build_networks(spec, scaling_mean, scaling_scale)
    return networks.plain if stateless else networks.explicit


def build_networks(spec: NetworkSpec, scaling_mean: F32, scaling_scale: F32) -> Networks:
    """Build all models on one set of layers; arguments as in `build_network`."""
    layers = NetworkLayers(spec, scaling_mean, scaling_scale)
    x = keras.Input((None, spec.input_size), name="x")
    h = keras.Input((spec.state_size,), name="h")
    plain = layers.wire(x, None)
    carried = layers.wire(x, h)
    heads = {"forecast": carried.forecast, "logits": carried.logits}
    outputs = {name: tensor for name, tensor in heads.items() if tensor is not None}
    return Networks(
        plain=keras.Model(x, plain.outputs, name="stream_gru"),
        explicit=keras.Model([x, h], [carried.outputs, carried.state], name="stream_gru_step"),
        trainer=keras.Model([x, h], {**outputs, "state": carried.state}, name="stream_gru_trainer"),
    )


@dataclass(frozen=True)
class _Wired:
    outputs: Any
    state: Any
    forecast: Any
    logits: Any


class NetworkLayers:
    """The layers, created once; `wire` connects them to a graph."""

    def __init__(self, spec: NetworkSpec, mean: F32, scale: F32) -> None:
        """Create every layer; weights are created when the first graph is wired."""
        self.spec = spec
        # Two layers, the subtraction first: x / scale - mean / scale would lose digits of 101325 Pa.
        self.centre = keras.layers.Rescaling(1.0, (-mean).tolist(), name="scaling_mean")
        self.shrink = keras.layers.Rescaling((1.0 / scale.astype(np.float64)).tolist(), name="scaling_scale")
        self.embeddings = {
            part.index: keras.layers.Embedding(part.categories, part.units, name=f"embedding_{part.index}")
            for part in spec.categorical
            if part.units
        }
        self.recurrent = [recurrent_layer(layer, i) for i, layer in enumerate(spec.layers)]
        self.activity = [_activity(layer, i) for i, layer in enumerate(spec.layers)]
        if spec.forecast is not None:
            self.columns = np.repeat(spec.target_index, spec.forecast_size // len(spec.target_index)).tolist()
            self.forecast = keras.layers.Dense(spec.forecast_size, name="forecast")
            self.units = keras.layers.Rescaling(
                scale[self.columns].tolist(), mean[self.columns].tolist(), name="forecast_units"
            )
        if spec.classes is not None:
            self.classes = keras.layers.Dense(spec.classes.logits, name="classes")
            logistic = spec.classes.activation == "logistic"
            activation = "sigmoid" if logistic else spec.classes.activation
            self.probabilities = keras.layers.Activation(activation, name="probabilities")

    def wire(self, x: Any, h: Any) -> _Wired:
        """Connect the layers to ``x`` (B, T, I), starting from ``h`` (B, S), or from the initial state if None."""
        scaled = self.shrink(self.centre(x[:, :, : self.spec.channels] if self.spec.calendar else x))
        sequence, state = self._recur(self._features(scaled, x), h)
        forecast = logits = None
        parts = []
        if self.spec.forecast is not None:
            forecast = self.forecast(sequence)
            if self.spec.forecast.residual:
                forecast = keras.ops.add(forecast, keras.ops.take(scaled, self.columns, axis=-1))
            parts.append(self.units(forecast))
        if self.spec.classes is not None:
            logits = self.classes(sequence)
            probabilities = self.probabilities(logits)
            if self.spec.classes.activation == "logistic":
                probabilities = keras.ops.concatenate([1.0 - probabilities, probabilities], axis=-1)
            parts.append(probabilities)
        outputs = parts[0] if len(parts) == 1 else keras.ops.concatenate(parts, axis=-1)
        return _Wired(outputs, state, forecast, logits)

    def _features(self, scaled: Any, x: Any) -> Any:
        """Inputs of the first layer: quantities, calendar inputs, then a vector for each category."""
        numeric = self.spec.numeric_index
        parts = [scaled] if len(numeric) == self.spec.channels else [scaled[:, :, c : c + 1] for c in numeric]
        if self.spec.calendar:
            parts.append(x[:, :, self.spec.channels :])
        for part in self.spec.categorical:
            # Scaling leaves categories unchanged (mean 0, scale 1).  Clip to the table before the cast (values beyond
            # the range of integers) and after it (NaN).
            codes = keras.ops.clip(scaled[:, :, part.index], 0.0, part.categories - 1.0)
            codes = keras.ops.clip(keras.ops.cast(codes, "int32"), 0, part.categories - 1)
            embedding = self.embeddings.get(part.index)
            parts.append(keras.ops.one_hot(codes, part.categories) if embedding is None else embedding(codes))
        return parts[0] if len(parts) == 1 else keras.ops.concatenate(parts, axis=-1)

    def _recur(self, sequence: Any, h: Any) -> tuple[Any, Any]:
        states, start = [], 0
        for config, layer, activity in zip(self.spec.layers, self.recurrent, self.activity, strict=True):
            initial = None
            if h is not None:
                ports = 2 if config.cell == "lstm" else 1
                initial = [h[:, start + p * config.units : start + (p + 1) * config.units] for p in range(ports)]
                start += ports * config.units
            sequence, *ended = layer(sequence, initial_state=initial)
            sequence = sequence if activity is None else activity(sequence)
            states += ended
        return sequence, states[0] if len(states) == 1 else keras.ops.concatenate(states, axis=-1)


def recurrent_layer(config: LayerConfig, index: int) -> keras.Layer:
    """The Keras layer ``recurrent_<index>``; a layer seed also fixes its three initializers.

    It is not unrolled, because a saved model must accept any number of steps; `stream_gru.training.fit` unrolls.
    """
    arguments: dict[str, Any] = {
        "name": f"recurrent_{index}",
        "activation": config.activation,
        "use_bias": config.use_bias,
        "dropout": config.dropout,
        "recurrent_dropout": config.recurrent_dropout,
        "seed": config.seed,
        "return_sequences": True,
        "return_state": True,
    }
    for offset, part in enumerate(("kernel", "recurrent", "bias")):
        seed = None if config.seed is None else config.seed + offset
        arguments[f"{part}_initializer"] = _initializer(getattr(config, f"{part}_initializer"), seed)
        arguments[f"{part}_regularizer"] = _regularizer(getattr(config, f"{part}_regularizer"))
    if config.cell != "simple_rnn":
        arguments["recurrent_activation"] = config.recurrent_activation
    if config.cell == "gru":
        arguments["reset_after"] = config.reset_after
    kinds = {"gru": keras.layers.GRU, "lstm": keras.layers.LSTM, "simple_rnn": keras.layers.SimpleRNN}
    return kinds[config.cell](config.units, **arguments)


def network_weights(model: keras.Model) -> dict[str, F32]:
    """All arrays of a bundle, by name, from any of the models or from a loaded ``.keras`` file."""
    mean = 0.0 - np.asarray(model.get_layer("scaling_mean").offset, np.float64)
    scale = 1.0 / np.asarray(model.get_layer("scaling_scale").scale, np.float64)
    weights = {"scaling/mean": mean.astype(np.float32), "scaling/scale": scale.astype(np.float32)}
    weights |= {name: variable.numpy().astype(np.float32) for name, variable in _variables(model).items()}
    return weights


def load_weights(model: keras.Model, weights: Mapping[str, F32]) -> None:
    """Set the weights of a model from `build_network` to those of a bundle; the scaling, part of the graph, must agree.

    Raises ValueError when an array is missing, has another shape or the scaling differs.
    """
    for name, variable in _variables(model).items():
        if name not in weights or weights[name].shape != tuple(variable.shape):
            found = weights[name].shape if name in weights else "nothing"
            msg = f"{name}: expected an array of shape {tuple(variable.shape)}, found {found}"
            raise ValueError(msg)
        variable.assign(weights[name])
    built = network_weights(model)
    for name in ("scaling/mean", "scaling/scale"):
        if name in weights and not np.array_equal(built[name], weights[name]):
            msg = f"{name}: the network was built with {built[name]}, not with {weights[name]}"
            raise ValueError(msg)


def _variables(model: keras.Model) -> dict[str, Any]:
    """The variables of a model by their names in a bundle."""
    found = {}
    for layer in model.layers:
        owner = layer.cell if layer.name.startswith("recurrent_") else layer
        for part in ("kernel", "recurrent_kernel", "bias", "embeddings"):
            if layer.name.startswith(_WITH_WEIGHTS) and getattr(owner, part, None) is not None:
                found[f"{layer.name}/{part}"] = getattr(owner, part)
    return found


def _initializer(name: str, seed: int | None) -> Any:
    if seed is None or name in ("zeros", "ones"):
        return name
    return keras.initializers.get({"class_name": name, "config": {"seed": seed}})


def _regularizer(config: RegularizerConfig) -> Any:
    return keras.regularizers.L1L2(l1=config.l1, l2=config.l2) if config.l1 or config.l2 else None


def _activity(config: LayerConfig, index: int) -> Any:
    """The activity penalty as a separate layer: in the recurrent layer Keras would count the final state twice."""
    penalty = config.activity_regularizer
    if not (penalty.l1 or penalty.l2):
        return None
    return keras.layers.ActivityRegularization(l1=penalty.l1, l2=penalty.l2, name=f"activity_{index}")
