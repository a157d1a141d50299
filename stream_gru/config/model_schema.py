"""The tables of the network: layers, embeddings, heads."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from stream_gru.config.field_types import (
    Activation,
    CalendarFeature,
    Cell,
    ClassActivation,
    Fraction,
    Initializer,
    Level,
    Name,
    NonNegative,
    Seed,
    Table,
)


class RegularizerConfig(Table, frozen=True):
    """Penalty l1 * sum(|w|) + l2 * sum(w**2)."""

    l1: Annotated[NonNegative, Meta(description="Factor of the sum of absolute values.")] = 0.0
    l2: Annotated[NonNegative, Meta(description="Factor of the sum of squares.")] = 0.0


class LayerConfig(Table, frozen=True):
    """One recurrent layer, the first next to the channels.  Keys are those of keras.layers.GRU and mean the same."""

    cell: Annotated[Cell, Meta(description="Kind of the recurrent cell.")] = "gru"
    units: Annotated[
        int, Meta(ge=1, le=4096, description="Size of the hidden state. More units learn more and compute longer.")
    ] = 32
    activation: Annotated[Activation, Meta(description="Activation of the candidate state.")] = "tanh"
    recurrent_activation: Annotated[Activation, Meta(description="Activation of the gates; not for simple_rnn.")] = (
        "sigmoid"
    )
    use_bias: Annotated[bool, Meta(description="Whether the layer has biases.")] = True
    reset_after: Annotated[
        bool, Meta(description="Whether the reset gate is applied after the matrix product, or before it; gru only.")
    ] = True
    kernel_initializer: Annotated[Initializer, Meta(description="Initial weights of the inputs.")] = "glorot_uniform"
    recurrent_initializer: Annotated[Initializer, Meta(description="Initial weights of the state.")] = "orthogonal"
    bias_initializer: Annotated[Initializer, Meta(description="Initial biases.")] = "zeros"
    kernel_regularizer: Annotated[
        RegularizerConfig, Meta(description="Penalty on the weights of the inputs: l1 * sum(|w|) + l2 * sum(w**2).")
    ] = RegularizerConfig()
    recurrent_regularizer: Annotated[RegularizerConfig, Meta(description="The same for the weights of the state.")] = (
        RegularizerConfig()
    )
    bias_regularizer: Annotated[RegularizerConfig, Meta(description="The same for the biases.")] = RegularizerConfig()
    activity_regularizer: Annotated[RegularizerConfig, Meta(description="The same for the output of the layer.")] = (
        RegularizerConfig()
    )
    dropout: Annotated[Fraction, Meta(description="Share of the inputs that is dropped at random in training.")] = 0.0
    recurrent_dropout: Annotated[
        Fraction, Meta(description="Share of the state that is dropped at random in training.")
    ] = 0.0
    unroll: Annotated[
        bool, Meta(description="Whether training unrolls the steps: faster for few steps, takes more memory.")
    ] = False
    seed: Annotated[
        Seed | None, Meta(description="Random seed of this layer; absent: from the seed of [training].", examples=[7])
    ] = None


class EmbeddingConfig(Table, frozen=True):
    """A learnt vector for each category of a channel; without one, categories are one-hot."""

    channel: Annotated[Name, Meta(description="A channel with categories.", examples=["valve"])]
    units: Annotated[int, Meta(ge=1, le=4096, description="Size of the vector.", examples=[16])]


class ForecastConfig(Table, frozen=True):
    """Forecast of the coming samples, every step up to the horizon.  Leave it out for a model that only classifies."""

    targets: Annotated[
        list[str], Meta(description="Channels to forecast; empty: all of them.", examples=[["flow", "pressure"]])
    ] = []
    horizon: Annotated[int, Meta(ge=1, le=1024, description="Steps ahead.")] = 1
    residual: Annotated[
        bool, Meta(description="Whether the network learns the change from the last value, or the value itself.")
    ] = True
    quantiles: Annotated[
        list[Level],
        Meta(
            description="Levels to forecast with pinball loss in place of one value, rising, on both sides of 0.5.",
            examples=[[0.05, 0.95]],
        ),
    ] = []
    loss: Annotated[Literal["mse", "mae", "huber"], Meta(description="Loss; not used with quantiles.")] = "mse"
    weight: Annotated[NonNegative, Meta(description="Weight of the forecast in the loss, against the classes.")] = 1.0


class ClassesConfig(Table, frozen=True):
    """Class of every sample.  Leave it out for a model that only forecasts."""

    labels: Annotated[
        list[str],
        Meta(
            description="Classes; empty: all labels of the training recordings, sorted.",
            examples=[["bearing_wear", "cavitation", "idle", "normal"]],
        ),
    ] = []
    activation: Annotated[
        ClassActivation,
        Meta(
            description='"softmax": exactly one class applies; "sigmoid": each class for itself; "logistic": one of '
            "two, from one number."
        ),
    ] = "softmax"
    class_weights: Annotated[
        Literal["none", "balanced"],
        Meta(description='"balanced": rare classes count as much as common ones; "none": all samples have one weight.'),
    ] = "none"
    weight: Annotated[NonNegative, Meta(description="Weight of the classes in the loss, against the forecast.")] = 1.0


class ModelConfig(Table, frozen=True):
    """The network: channels in, recurrent layers, forecast or class out.  It has one of the two at least."""

    layer: Annotated[list[LayerConfig], Meta(description="The recurrent layers.", extra={"sample": [{}]})] = field(
        default_factory=lambda: [LayerConfig()]
    )
    embedding: Annotated[list[EmbeddingConfig], Meta(description="The embeddings of channels with categories.")] = []
    scaling: Annotated[
        Literal["standard", "minmax", "none"],
        Meta(description='Scaling of the channels: "standard" (mean and deviation), "minmax" (0 to 1) or "none".'),
    ] = "standard"
    calendar: Annotated[
        list[CalendarFeature],
        Meta(description="Times that are inputs as well.", examples=[["hour_of_day", "day_of_week"]]),
    ] = []
    forecast: Annotated[ForecastConfig | None, Meta(description="The forecast.", extra={"sample": {}})] = None
    classes: Annotated[ClassesConfig | None, Meta(description="The classes.", extra={"sample": {}})] = None
