"""The manifest of a bundle: the contract between training and everything that reads a model.

Structs reject unknown keys, so a layer, option or file of another version is an error.
Sizes: C channels, I inputs, S state numbers, K outputs, D targets, H horizon, Q quantiles, L labels.

`manifest_problems` checks the rules between its keys before any array is read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import Struct

from stream_gru.config.field_types import (
    MAX_CATEGORIES,
    MAX_ONE_HOT,
    MIN_PERIOD_S,
    Activation,
    CalendarFeature,
    Cell,
    ClassActivation,
)
from stream_gru.config.model_schema import EmbeddingConfig
from stream_gru.config.train_schema import ChannelConfig, ConditioningConfig, InputConfig


class _Part(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of a manifest: immutable, and an unknown key is an error."""


class Channel(_Part, frozen=True, kw_only=True):
    """One input channel: allowed range (values outside it count as missing) and range seen in training."""

    name: str
    seen_min: float
    seen_max: float
    unit: str = ""
    column: str = ""
    min: float | None = None
    max: float | None = None
    categories: int = 0


class Embedding(_Part, frozen=True, kw_only=True):
    """A learnt vector of ``units`` numbers for each category of a channel."""

    channel: str
    units: int


class Layer(_Part, frozen=True, kw_only=True):
    """One recurrent layer: the parameters of its step."""

    name: str
    cell: Cell
    units: int
    input_size: int
    activation: Activation
    recurrent_activation: Activation
    use_bias: bool
    reset_after: bool

    @property
    def gates(self) -> int:
        """Number of blocks of U columns in the kernels."""
        return {"gru": 3, "lstm": 4, "simple_rnn": 1}[self.cell]

    @property
    def state_size(self) -> int:
        """Numbers of this layer in a row of the hidden state; LSTM: h, then c."""
        return self.units * (2 if self.cell == "lstm" else 1)

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """Shape of the bias in Keras' layout."""
        if self.cell == "gru" and self.reset_after:
            return (2, 3 * self.units)
        return (self.gates * self.units,)


class Forecast(_Part, frozen=True, kw_only=True):
    """The forecast head; outputs are laid out (D, H, Q), Q = 1 without quantiles (else sorted, 0.5 among them)."""

    targets: list[str]
    horizon: int
    residual: bool
    quantiles: list[float] = []

    @property
    def output_names(self) -> list[str]:
        """Names of the D * H * Q outputs.

        >>> Forecast(targets=["flow"], horizon=2, residual=True).output_names
        ['flow +1', 'flow +2']
        """
        quantiles = [f" quantile {q:g}" for q in self.quantiles] or [""]
        steps = range(1, self.horizon + 1)
        return [f"{target} +{step}{quantile}" for target in self.targets for step in steps for quantile in quantiles]


class Classes(_Part, frozen=True, kw_only=True):
    """The class head: L probabilities after the forecast's outputs.

    ``logistic``: two labels from one logit; the outputs are the probabilities of both.
    """

    labels: list[str]
    activation: ClassActivation

    @property
    def logits(self) -> int:
        """Number of columns of the head's kernel."""
        return 1 if self.activation == "logistic" else len(self.labels)


class Calibration(_Part, frozen=True, kw_only=True):
    """Residual quantiles of the validation part, for intervals of any level.

    ``levels`` (A,) ascending probabilities; ``residuals`` (D, H, A): quantiles of truth - forecast, engineering units.
    With a quantile head they are quantiles of the residual divided by the half-width that the head predicts
    (negative side: below the median), without unit.  ``samples``: number of residuals they were computed from.
    """

    levels: list[float]
    residuals: list[list[list[float]]]
    samples: int


class EngineParity(_Part, frozen=True, kw_only=True):
    """Largest absolute difference of one engine from Keras' full-sequence output, in scaled units."""

    engine: str
    samples: int
    max_difference: float
    tolerance: float


class FileEntry(_Part, frozen=True, kw_only=True):
    """SHA-256 and size of a file of the bundle."""

    sha256: str
    bytes: int


class Manifest(_Part, frozen=True, kw_only=True):
    """Everything about a model but weights; ``digest``: `stream_gru.model.bundle.document_digest` of the rest."""

    format_version: int
    model_id: str
    created: str
    versions: dict[str, str]
    regime: Literal["stateful", "windowed"]
    window: int | None
    period_s: float
    input: InputConfig
    conditioning: ConditioningConfig
    channels: list[Channel]
    calendar: list[CalendarFeature]
    layers: list[Layer]
    forecast: Forecast | None
    classes: Classes | None
    state_size: int
    warm_up: int
    calibration: Calibration | None
    parity: list[EngineParity]
    scores: dict[str, object]
    files: dict[str, FileEntry]
    ignore_labels: list[str] = []
    embeddings: list[Embedding] = []
    digest: str = ""

    @property
    def input_size(self) -> int:
        """Inputs of the network: channels, then sine and cosine of each calendar feature."""
        return len(self.channels) + 2 * len(self.calendar)

    @property
    def numeric_index(self) -> list[int]:
        """Indices of the channels that are quantities; they are scaled."""
        return [index for index, channel in enumerate(self.channels) if not channel.categories]

    @property
    def categorical(self) -> list[Categorical]:
        """Channels that are categories, in order."""
        return categorical_channels(self.channels, self.embeddings)

    @property
    def feature_size(self) -> int:
        """Inputs of the first layer: scaled quantities, calendar inputs, the vector of each categorical channel."""
        numeric = len(self.numeric_index) + 2 * len(self.calendar)
        return numeric + sum(part.width for part in self.categorical)

    @property
    def forecast_size(self) -> int:
        """Outputs of the forecast head, D * H * Q."""
        if self.forecast is None:
            return 0
        return len(self.forecast.targets) * self.forecast.horizon * max(1, len(self.forecast.quantiles))

    @property
    def output_size(self) -> int:
        """Number of outputs, K."""
        return self.forecast_size + (0 if self.classes is None else len(self.classes.labels))

    @property
    def input_names(self) -> list[str]:
        """Names of the I inputs: channels, then sine and cosine of each calendar feature."""
        calendar = [f"{wave} of {feature}" for feature in self.calendar for wave in ("sine", "cosine")]
        return [*(channel.name for channel in self.channels), *calendar]

    @property
    def output_names(self) -> list[str]:
        """Names of the K outputs: ``target +steps``, with its quantile if any, then the probability of each label."""
        labels = [] if self.classes is None else self.classes.labels
        forecast = [] if self.forecast is None else self.forecast.output_names
        return [*forecast, *(f"probability of {label}" for label in labels)]

    @property
    def target_index(self) -> list[int]:
        """Channel index of each forecast target."""
        names = [channel.name for channel in self.channels]
        return [] if self.forecast is None else [names.index(target) for target in self.forecast.targets]


@dataclass(frozen=True)
class Categorical:
    """Encoding of one categorical channel: a learnt vector of ``units`` numbers, or one-hot if ``units`` is 0."""

    index: int
    categories: int
    units: int

    @property
    def width(self) -> int:
        """Numbers per category."""
        return self.units or self.categories

    @property
    def table(self) -> str:
        """Name of the array of learnt vectors in a bundle, (categories, units)."""
        return f"embedding_{self.index}/embeddings"


def categorical_channels(
    channels: Sequence[Channel | ChannelConfig], embeddings: Sequence[Embedding | EmbeddingConfig]
) -> list[Categorical]:
    """Encodings of the categorical ones among ``channels``, in order."""
    units = {embedding.channel: embedding.units for embedding in embeddings}
    return [
        Categorical(index, channel.categories, units.get(channel.name, 0))
        for index, channel in enumerate(channels)
        if channel.categories
    ]


def weight_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every array of a bundle; a bundle has exactly these."""
    channels = len(manifest.channels)
    shapes: dict[str, tuple[int, ...]] = {"scaling/mean": (channels,), "scaling/scale": (channels,)}
    shapes |= {part.table: (part.categories, part.units) for part in manifest.categorical if part.units}
    width = manifest.feature_size
    for layer in manifest.layers:
        columns = layer.gates * layer.units
        shapes[f"{layer.name}/kernel"] = (width, columns)
        shapes[f"{layer.name}/recurrent_kernel"] = (layer.units, columns)
        if layer.use_bias:
            shapes[f"{layer.name}/bias"] = layer.bias_shape
        width = layer.units
    if manifest.forecast is not None:
        shapes["forecast/kernel"] = (width, manifest.forecast_size)
        shapes["forecast/bias"] = (manifest.forecast_size,)
    if manifest.classes is not None:
        shapes["classes/kernel"] = (width, manifest.classes.logits)
        shapes["classes/bias"] = (manifest.classes.logits,)
    return shapes


def parameter_formula(layer: Layer) -> tuple[str, int]:
    """Formula and number of a layer's parameters; U units, I inputs.

    A cell has G blocks (GRU 3: update, reset, candidate; LSTM 4: input, forget, candidate, output; SimpleRNN 1), each
    with a kernel I x U, a recurrent kernel U x U and, with ``use_bias``, a bias U; a GRU with ``reset_after`` has a
    second bias, for the recurrent side.
    """
    g, u, i = layer.gates, layer.units, layer.input_size
    bias = 0 if not layer.use_bias else 2 if len(layer.bias_shape) == 2 else 1
    count = g * (u * u + u * i + bias * u)
    block = "U² + U·I" + {0: "", 1: " + U", 2: " + 2 U"}[bias]
    return f"{block if g == 1 else f'{g} ({block})'}, U = {u}, I = {i}", count


MAX_SECONDS = 1e9
MAX_CHANNELS = 4096
MAX_LAYERS = 256


def manifest_problems(manifest: Manifest) -> Iterator[str]:
    """Yield each broken rule as ``key: expected ..., got ...``; nothing for a valid manifest."""
    names = [channel.name for channel in manifest.channels]
    if not names or len(set(names)) != len(names):
        yield f"channels: expected distinct names, at least one, got {names}"
    if len(names) > MAX_CHANNELS:
        yield f"channels: expected at most {MAX_CHANNELS:,}, got {len(names):,}"
        return
    if not manifest.layers:
        yield "layers: expected at least one recurrent layer, got none"
    if len(manifest.layers) > MAX_LAYERS:
        yield f"layers: expected at most {MAX_LAYERS}, got {len(manifest.layers):,}"
        return
    yield from _embedding_problems(manifest)
    width = manifest.feature_size
    for index, layer in enumerate(manifest.layers):
        if layer.name != f"recurrent_{index}" or not 1 <= layer.units <= 4096 or layer.input_size != width:
            yield f"layers[{index}]: expected recurrent_{index} with {width} inputs and 1..4096 units, got {layer}"
        width = layer.units
    if manifest.state_size != sum(layer.state_size for layer in manifest.layers):
        yield f"state_size: expected the sum over the layers, got {manifest.state_size}"
    if manifest.forecast is None and manifest.classes is None:
        yield "expected a forecast head, a class head or both, got none"
    if manifest.forecast is not None:
        yield from _forecast_problems(manifest, manifest.forecast, names)
    if manifest.classes is not None:
        labels = manifest.classes.labels
        if not labels or len(set(labels)) != len(labels):
            yield f"classes.labels: expected distinct labels, at least one, got {labels}"
        if manifest.classes.activation == "logistic" and len(labels) != 2:
            yield f"classes.labels: expected two labels with activation logistic, got {labels}"
    if manifest.regime == "windowed" and not (manifest.window and manifest.window > 0):
        yield f"window: expected a positive number of steps for the windowed regime, got {manifest.window}"
    if not MIN_PERIOD_S <= manifest.period_s <= MAX_SECONDS:
        yield f"period_s: expected at least {MIN_PERIOD_S} seconds, at most {MAX_SECONDS:.0e}, got {manifest.period_s}"
    if not 0 < manifest.conditioning.clock_backwards_s <= MAX_SECONDS:
        found = manifest.conditioning.clock_backwards_s
        yield f"conditioning.clock_backwards_s: expected seconds, at most {MAX_SECONDS:.0e}, got {found}"
    if manifest.warm_up < 0:
        yield f"warm_up: expected a number of steps, got {manifest.warm_up}"
    for index, channel in enumerate(manifest.channels):
        yield from _channel_problems(f"channels[{index}]", channel)


def _embedding_problems(manifest: Manifest) -> Iterator[str]:
    categorical = [manifest.channels[part.index].name for part in manifest.categorical]
    embedded = [embedding.channel for embedding in manifest.embeddings]
    if len(set(embedded)) != len(embedded) or not set(embedded) <= set(categorical):
        yield f"embeddings: expected distinct channels among {categorical}, got {embedded}"
    for index, embedding in enumerate(manifest.embeddings):
        if not 1 <= embedding.units <= MAX_ONE_HOT:
            yield f"embeddings[{index}].units: expected 1..{MAX_ONE_HOT:,}, got {embedding.units}"
    for part in manifest.categorical:
        if part.categories > MAX_CATEGORIES or part.width > MAX_ONE_HOT:
            yield (
                f"channels[{part.index}].categories: expected at most {MAX_ONE_HOT:,} without an embedding,"
                f" got {part.categories:,}"
            )


def _channel_problems(where: str, channel: Channel) -> Iterator[str]:
    if channel.categories < 0:
        yield f"{where}.categories: expected 0 or a number of categories, got {channel.categories}"
    for key in ("seen_min", "seen_max", "min", "max"):
        value = getattr(channel, key)
        if value is not None and not math.isfinite(value):
            yield f"{where}.{key}: expected a finite number, got {value}"
    if channel.min is not None and channel.max is not None and not channel.min < channel.max:
        yield f"{where}: expected min below max, got {channel.min} and {channel.max}"


def _forecast_problems(manifest: Manifest, head: Forecast, names: list[str]) -> Iterator[str]:
    numeric = [names[index] for index in manifest.numeric_index]
    if not head.targets or len(set(head.targets)) != len(head.targets) or not set(head.targets) <= set(numeric):
        yield f"forecast.targets: expected channels among {numeric}, got {head.targets}"
    if not 1 <= head.horizon <= 1024:
        yield f"forecast.horizon: expected 1..1024 steps, got {head.horizon}"
    ascending = all(a < b for a, b in itertools.pairwise([0.0, *head.quantiles, 1.0]))
    if head.quantiles and (not ascending or 0.5 not in head.quantiles or len(head.quantiles) < 3):
        yield f"forecast.quantiles: expected ascending levels around 0.5, got {head.quantiles}"
    calibration = manifest.calibration
    if calibration is None:
        return
    if calibration.samples < 1:
        yield f"calibration.samples: expected at least 1, got {calibration.samples}"
    shape = (len(head.targets), head.horizon, len(calibration.levels))
    table = calibration.residuals
    if len(table) != shape[0] or any(
        len(rows) != shape[1] or any(len(row) != shape[2] for row in rows) for rows in table
    ):
        yield f"calibration.residuals: expected a table of shape {shape}"
    if len(calibration.levels) < 3 or not all(a < b for a, b in itertools.pairwise([0.0, *calibration.levels, 1.0])):
        yield "calibration.levels: expected at least three ascending probabilities between 0 and 1"
