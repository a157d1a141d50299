"""The network: explicit state equals the whole sequence, weights have their names, files load in plain Keras."""

from pathlib import Path

import keras
import numpy as np
import pytest

from stream_gru.config.field_types import CalendarFeature
from stream_gru.config.model_schema import ClassesConfig, ForecastConfig, LayerConfig, ModelConfig, RegularizerConfig
from stream_gru.config.train_schema import ChannelConfig
from stream_gru.core.types import F32
from stream_gru.model.keras.network import build_network, build_networks, load_weights, network_weights, recurrent_layer
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.model.manifest import parameter_formula

pytestmark = pytest.mark.train

MEAN = np.array([0, 101325, -3], np.float32)
SCALE = np.array([1, 10, 0.3], np.float32)

STACKS = {
    "gru": [LayerConfig(units=7)],
    "gru_reset_before": [LayerConfig(units=7, reset_after=False)],
    "lstm": [LayerConfig(cell="lstm", units=5, use_bias=False)],
    "simple_rnn": [LayerConfig(cell="simple_rnn", units=5)],
    "stacked": [
        LayerConfig(units=6, activation="swish", seed=0, dropout=0.1, recurrent_initializer="he_normal"),
        LayerConfig(cell="lstm", units=4, activity_regularizer=RegularizerConfig(l2=0.01)),
        LayerConfig(units=3, kernel_regularizer=RegularizerConfig(l1=0.1)),
    ],
}


def network_spec(
    layers: list[LayerConfig], calendar: bool = False, quantiles: tuple[float, ...] = (0.9, 0.1)
) -> NetworkSpec:
    """Three channels, two forecast targets, two classes."""
    features: list[CalendarFeature] = ["hour_of_day"] if calendar else []
    forecast = ForecastConfig(targets=["b", "a"], horizon=3, quantiles=list(quantiles))
    model = ModelConfig(layer=layers, calendar=features, forecast=forecast, classes=ClassesConfig())
    return NetworkSpec.from_config(model, [ChannelConfig(name=name) for name in "abc"], ["p", "q"])


def sample(spec: NetworkSpec, steps: int = 20) -> F32:
    """Two sequences in engineering units."""
    x = np.random.default_rng(0).normal(size=(2, steps, spec.input_size)).astype(np.float32)
    x[..., :3] = x[..., :3] * SCALE + MEAN
    return x


@pytest.mark.parametrize("calendar", [False, True])
@pytest.mark.parametrize("stack", STACKS)
def test_explicit_state_in_chunks_is_the_whole_sequence(stack: str, calendar: bool) -> None:
    """In parts of any length with the state passed on, the outputs are those of the whole sequence."""
    spec = network_spec(STACKS[stack], calendar)
    networks = build_networks(spec, MEAN, SCALE)
    x = sample(spec)
    whole = networks.plain(x).numpy()
    state = keras.ops.zeros((2, spec.state_size))
    parts = []
    for piece in np.split(x, [7, 8], axis=1):
        part, state = networks.explicit([keras.ops.array(piece), state])
        parts.append(part.numpy())
    difference = np.concatenate(parts, axis=1) - whole
    scale = np.r_[np.repeat([10.0, 1.0], 9), 1.0, 1.0]
    assert whole.shape == (2, 20, spec.output_size)
    assert np.abs(difference / scale).max() < 1e-6


@pytest.mark.parametrize("stack", STACKS)
def test_saved_file_loads_in_plain_keras(stack: str, tmp_path: Path) -> None:
    """A saved model needs no custom object, gives equal outputs and has every array of a bundle."""
    spec = network_spec(STACKS[stack], calendar=True)
    model = build_network(spec, MEAN, SCALE, stateless=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    x = sample(spec)
    assert np.array_equal(loaded(x).numpy(), model(x).numpy())
    saved, read = network_weights(model), network_weights(loaded)
    assert saved.keys() == read.keys()
    assert all(np.array_equal(saved[name], read[name]) for name in saved)
    assert np.array_equal(read["scaling/mean"], MEAN)
    assert np.array_equal(read["scaling/scale"], SCALE)


@pytest.mark.parametrize("stack", STACKS)
def test_parameter_formula(stack: str) -> None:
    """The formula counts exactly the trainable parameters of Keras."""
    spec = network_spec(STACKS[stack])
    weights = network_weights(build_network(spec, MEAN, SCALE, stateless=True))
    for layer in spec.manifest_layers():
        assert parameter_formula(layer)[1] == sum(v.size for name, v in weights.items() if name.startswith(layer.name))


def test_weights_can_be_moved_between_models() -> None:
    """The weights of one network make another one equal; a wrong shape or scaling is rejected."""
    spec = network_spec(STACKS["gru"])
    one, other = (build_network(spec, MEAN, SCALE, stateless=True) for _ in range(2))
    x, weights = sample(spec), network_weights(one)
    assert not np.array_equal(one(x).numpy(), other(x).numpy())
    load_weights(other, weights)
    assert np.array_equal(one(x).numpy(), other(x).numpy())
    with pytest.raises(ValueError, match="forecast/bias"):
        load_weights(other, {**weights, "forecast/bias": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="scaling/mean"):
        load_weights(other, {**weights, "scaling/mean": MEAN + 1})


def test_residual_forecast_of_zero_weights_is_the_last_value() -> None:
    """With all weights 0 the residual head forecasts persistence, in engineering units, target by target."""
    spec = network_spec(STACKS["gru"], quantiles=())
    model = build_network(spec, MEAN, SCALE, stateless=True)
    weights = network_weights(model)
    load_weights(model, {n: v if n.startswith("scaling") else np.zeros_like(v) for n, v in weights.items()})
    x = sample(spec)
    y = model(x).numpy()
    assert np.allclose(y[..., :6], x[..., [1, 1, 1, 0, 0, 0]], rtol=1e-6, atol=1e-6)
    assert np.allclose(y[..., 6:], 0.5)


def test_layer_options_reach_keras() -> None:
    """Every key of a layer is set in the Keras layer under the same name."""
    penalty = RegularizerConfig(l1=0.1, l2=0.2)
    config = LayerConfig(
        units=4, activation="relu", recurrent_activation="hard_sigmoid", use_bias=False, reset_after=False, dropout=0.1,
        recurrent_dropout=0.2, seed=5, kernel_initializer="he_uniform", kernel_regularizer=penalty,
        recurrent_regularizer=penalty, bias_regularizer=penalty,
    )  # fmt: skip
    made = recurrent_layer(config, 3).get_config()
    assert made["name"] == "recurrent_3"
    for key in (
        "units",
        "activation",
        "recurrent_activation",
        "use_bias",
        "reset_after",
        "dropout",
        "recurrent_dropout",
    ):
        assert made[key] == getattr(config, key)
    for key in ("kernel_regularizer", "recurrent_regularizer", "bias_regularizer"):
        assert made[key]["config"] == pytest.approx({"l1": 0.1, "l2": 0.2})
    assert made["seed"] == 5
    assert made["kernel_initializer"]["class_name"] == "HeUniform"


def test_layer_seed_fixes_the_initial_weights() -> None:
    """Two networks with the same layer seed start from the same recurrent weights."""
    spec = network_spec([LayerConfig(units=4, seed=9)])
    one, other = (network_weights(build_network(spec, MEAN, SCALE, stateless=True)) for _ in range(2))
    assert np.array_equal(one["recurrent_0/kernel"], other["recurrent_0/kernel"])
    assert np.array_equal(one["recurrent_0/recurrent_kernel"], other["recurrent_0/recurrent_kernel"])


def test_quantiles_are_sorted_and_hold_the_median() -> None:
    """The head has one column per quantile, ascending, 0.5 among them."""
    spec = network_spec(STACKS["gru"])
    assert spec.forecast is not None
    assert spec.forecast.quantiles == [0.1, 0.5, 0.9]
    assert spec.output_size == 2 * 3 * 3 + 2
