"""Specification of a network and of its training objective; needs no keras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from stream_gru.config.model_schema import ForecastConfig, LayerConfig, ModelConfig
from stream_gru.config.train_schema import ChannelConfig
from stream_gru.model.manifest import Categorical, Classes, Forecast, Layer, Manifest, categorical_channels


@dataclass(frozen=True)
class Objective:
    """Training minimises ``forecast_weight`` * forecast loss + ``classes_weight`` * class loss + penalties."""

    forecast_loss: Literal["mse", "mae", "huber"] = "mse"
    forecast_weight: float = 1.0
    class_weights: Literal["none", "balanced"] = "none"
    classes_weight: float = 1.0


@dataclass(frozen=True)
class NetworkSpec:
    """Structure of a network.

    ``channels``      number of channels, C         ``calendar``  unscaled inputs after them, two per calendar feature
    ``categorical``   channels that are categories; the others are scaled
    ``target_index``  (D,) channel of each forecast target
    """

    layers: tuple[LayerConfig, ...]
    channels: int
    calendar: int = 0
    categorical: tuple[Categorical, ...] = ()
    forecast: Forecast | None = None
    target_index: tuple[int, ...] = ()
    classes: Classes | None = None
    objective: Objective = field(default_factory=Objective)

    @classmethod
    def from_config(cls, model: ModelConfig, channels: Sequence[ChannelConfig], labels: Sequence[str]) -> Self:
        """Build from a configuration and its channels; ``labels`` are the class labels if none are configured."""
        forecast, classes = model.forecast, model.classes
        names = [channel.name for channel in channels]
        quantities = [channel.name for channel in channels if not channel.categories]
        targets = [] if forecast is None else list(forecast.targets or quantities)
        objective = Objective(
            forecast_loss=forecast.loss if forecast else "mse",
            forecast_weight=forecast.weight if forecast else 1.0,
            class_weights=classes.class_weights if classes else "none",
            classes_weight=classes.weight if classes else 1.0,
        )
        return cls(
            layers=tuple(model.layer),
            channels=len(channels),
            calendar=2 * len(model.calendar),
            categorical=tuple(categorical_channels(channels, model.embedding)),
            forecast=None if forecast is None else _forecast(forecast, targets),
            target_index=tuple(names.index(name) for name in targets),
            classes=None
            if classes is None
            else Classes(labels=list(classes.labels or labels), activation=classes.activation),
            objective=objective,
        )

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        """The network of a bundle; settings that only training uses (initializers, dropout, penalties) are defaults."""
        return cls(
            layers=tuple(_layer_config(layer) for layer in manifest.layers),
            channels=len(manifest.channels),
            calendar=2 * len(manifest.calendar),
            categorical=tuple(manifest.categorical),
            forecast=manifest.forecast,
            target_index=tuple(manifest.target_index),
            classes=manifest.classes,
        )

    @property
    def input_size(self) -> int:
        """Inputs of the network, I = C + calendar inputs."""
        return self.channels + self.calendar

    @property
    def numeric_index(self) -> list[int]:
        """Indices of the channels that are quantities; they are scaled."""
        return [index for index in range(self.channels) if index not in {part.index for part in self.categorical}]

    @property
    def forecast_size(self) -> int:
        """Outputs of the forecast head, D * H * Q."""
        if self.forecast is None:
            return 0
        return len(self.target_index) * self.forecast.horizon * max(1, len(self.forecast.quantiles))

    @property
    def output_size(self) -> int:
        """Number of outputs, K."""
        return self.forecast_size + (0 if self.classes is None else len(self.classes.labels))

    @property
    def state_size(self) -> int:
        """Numbers in a row of the hidden state, S."""
        return sum(layer.state_size for layer in self.manifest_layers())

    def manifest_layers(self) -> list[Layer]:
        """The recurrent layers as in the manifest of a bundle."""
        rows = []
        width = len(self.numeric_index) + self.calendar + sum(part.width for part in self.categorical)
        for index, layer in enumerate(self.layers):
            rows.append(
                Layer(
                    name=f"recurrent_{index}",
                    cell=layer.cell,
                    units=layer.units,
                    input_size=width,
                    activation=layer.activation,
                    recurrent_activation=layer.recurrent_activation,
                    use_bias=layer.use_bias,
                    reset_after=layer.reset_after and layer.cell == "gru",
                )
            )
            width = layer.units
        return rows


def _forecast(config: ForecastConfig, targets: list[str]) -> Forecast:
    return Forecast(
        targets=targets,
        horizon=config.horizon,
        residual=config.residual,
        quantiles=sorted({*config.quantiles, 0.5}) if config.quantiles else [],
    )


def _layer_config(layer: Layer) -> LayerConfig:
    return LayerConfig(
        cell=layer.cell,
        units=layer.units,
        activation=layer.activation,
        recurrent_activation=layer.recurrent_activation,
        use_bias=layer.use_bias,
        reset_after=layer.reset_after,
    )
