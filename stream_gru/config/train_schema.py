"""Every key a configuration file may have: name, type, range, default.

One file may hold the keys for training, for running, or for both.  Tables that both need (``[input]``, ``[[channel]]``,
``[conditioning]``) are copied into the bundle by training, so that a run needs to say nothing about them; the tables of
a running daemon stand in `stream_gru.config.run_schema`.
Constraints stand in the types (`msgspec.Meta`), so that one walk over the types checks a file, prints the sample
and names the expectation in an error.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, field

from stream_gru.config.connector import SinkTable, SourceTable
from stream_gru.config.field_types import (
    MAX_CATEGORIES,
    Activation,
    CalendarFeature,
    Cell,
    ClassActivation,
    Delimiter,
    FileFormat,
    Fraction,
    Initializer,
    Level,
    Name,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Seconds,
    Seed,
    Table,
    TimeUnit,
)
from stream_gru.config.run_schema import (
    AlarmConfig,
    BrokerConfig,
    ChannelJoinConfig,
    ControlConfig,
    DeadLetterConfig,
    LimitsConfig,
    MetricsConfig,
    RunConfig,
)


class ChannelConfig(Table, frozen=True):
    """One measured quantity.  Values outside ``min..max`` count as missing.

    With ``categories`` N it is no quantity but one of N kinds, written 0 to N - 1; anything else counts as missing.
    """

    name: Name
    unit: str = ""
    column: str = ""
    min: float | None = None
    max: float | None = None
    categories: Annotated[int, Meta(ge=0, le=MAX_CATEGORIES)] = 0


class InputConfig(Table, frozen=True):
    """How a record is read.  Names are columns of CSV and Parquet files, keys of JSON lines."""

    format: FileFormat = "auto"
    delimiter: Delimiter = ","
    time: Name = "time"
    time_unit: TimeUnit = "iso"
    stream: str = ""
    label: str = ""
    reset: str = ""
    episode: str = ""
    device_seq: str = ""


class DataConfig(Table, frozen=True):
    """Which recordings train; paths are relative to the configuration file."""

    files: list[str]
    period_s: Seconds
    ignore_labels: list[str] = []


class SplitConfig(Table, frozen=True):
    """What is kept aside.  ``by = "time"``: shares of each span, or instants; ``by = "stream"``: name patterns."""

    by: Literal["time", "stream"] = "time"
    validation: Fraction = 0.15
    test: Fraction = 0.15
    validation_from: str = ""
    test_from: str = ""
    until: str = ""
    validation_streams: list[str] = []
    test_streams: list[str] = []


class ConditioningConfig(Table, frozen=True):
    """When a missing piece is filled in and when the stream is reset; see `pipeline.conditioning`."""

    max_fill_steps: NonNegativeInt = 5
    clock_backwards_s: Seconds = 3600.0


class RegularizerConfig(Table, frozen=True):
    """Penalty ``l1 * sum(|w|) + l2 * sum(w**2)``."""

    l1: NonNegative = 0.0
    l2: NonNegative = 0.0


class LayerConfig(Table, frozen=True):
    """One recurrent layer; the keys are those of ``keras.layers.GRU`` and mean the same."""

    cell: Cell = "gru"
    units: Annotated[int, Meta(ge=1, le=4096)] = 32
    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"
    use_bias: bool = True
    reset_after: bool = True
    kernel_initializer: Initializer = "glorot_uniform"
    recurrent_initializer: Initializer = "orthogonal"
    bias_initializer: Initializer = "zeros"
    kernel_regularizer: RegularizerConfig = RegularizerConfig()
    recurrent_regularizer: RegularizerConfig = RegularizerConfig()
    bias_regularizer: RegularizerConfig = RegularizerConfig()
    activity_regularizer: RegularizerConfig = RegularizerConfig()
    dropout: Fraction = 0.0
    recurrent_dropout: Fraction = 0.0
    unroll: bool = False
    seed: Seed | None = None


class ForecastConfig(Table, frozen=True):
    """Direct multi-step forecast of ``targets`` (all channels when empty) for horizons 1..``horizon``.

    ``residual``: the network learns the change from the last value.  ``quantiles``: pinball loss on these levels (0.5
    is always among them) in place of ``loss``.
    """

    targets: list[str] = []
    horizon: Annotated[int, Meta(ge=1, le=1024)] = 1
    residual: bool = True
    quantiles: list[Level] = []
    loss: Literal["mse", "mae", "huber"] = "mse"
    weight: NonNegative = 1.0


class ClassesConfig(Table, frozen=True):
    """Classification of every step.  ``labels`` empty: all labels of the training recordings, sorted.

    ``activation``: ``softmax`` one class of L; ``sigmoid`` each for itself; ``logistic`` one of two, from one number.
    """

    labels: list[str] = []
    activation: ClassActivation = "softmax"
    class_weights: Literal["none", "balanced"] = "none"
    weight: NonNegative = 1.0


class EmbeddingConfig(Table, frozen=True):
    """A learnt vector of ``units`` numbers for each category of a channel; without one, categories are one-hot."""

    channel: Name
    units: Annotated[int, Meta(ge=1, le=4096)]


class ModelConfig(Table, frozen=True):
    """The network: inputs, recurrent layers, heads.  At least one head must be present."""

    layer: list[LayerConfig] = field(default_factory=lambda: [LayerConfig()])
    embedding: list[EmbeddingConfig] = []
    scaling: Literal["standard", "minmax", "none"] = "standard"
    calendar: list[CalendarFeature] = []
    forecast: ForecastConfig | None = None
    classes: ClassesConfig | None = None


class TrainingConfig(Table, frozen=True):
    """How the weights are found.

    ``stateful``: recordings are laid into ``batch_size`` parallel lanes, gradients run back over ``bptt_steps`` steps
    and the state is carried to the next batch.  ``windowed``: a batch holds ``batch_size`` windows of ``window`` steps,
    one every ``stride`` steps, each from the initial state.  ``warm_up``: steps after a reset left out of the loss.
    An update is one optimizer step on one batch.  ``max_updates`` replaces ``epochs``, and ``evaluate_every`` updates
    replace one epoch as the validation interval; 0 turns either off.
    ``restore_best_weights``: keep the weights with the best validation loss; when false, keep the last ones and ignore
    ``patience``.  ``ema_momentum``: measure and keep an exponential moving average of the weights with this momentum.
    """

    regime: Literal["stateful", "windowed"] = "stateful"
    batch_size: PositiveInt = 32
    bptt_steps: PositiveInt = 64
    window: PositiveInt = 64
    stride: PositiveInt = 16
    window_loss: Literal["every", "last"] = "every"
    warm_up: NonNegativeInt = 0
    augment_gain: Fraction = 0.0
    augment_offset: NonNegative = 0.0
    augment_noise: NonNegative = 0.0
    augment_channel_shift: NonNegativeInt = 0
    shuffle: bool = True
    epochs: PositiveInt = 20
    max_updates: NonNegativeInt = 0
    evaluate_every: NonNegativeInt = 0
    patience: PositiveInt = 5
    restore_best_weights: bool = True
    ema_momentum: Fraction = 0.0
    optimizer: Literal["adam", "adamw", "rmsprop", "sgd"] = "adam"
    learning_rate: Positive = 0.001
    schedule: Literal["constant", "cosine"] = "constant"
    clip_norm: NonNegative = 1.0
    seed: Seed = 1
    tensorboard: str = ""


class Config(Table, frozen=True):
    """A whole file.  `train` needs data, channel and model; `run` needs run and at least one source and sink."""

    input: InputConfig = InputConfig()
    channel: list[ChannelConfig] = []
    data: DataConfig | None = None
    split: SplitConfig = SplitConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    model: ModelConfig | None = None
    training: TrainingConfig = TrainingConfig()
    run: RunConfig | None = None
    broker: list[BrokerConfig] = []
    source: list[SourceTable] = []
    channel_join: ChannelJoinConfig = ChannelJoinConfig()
    limits: LimitsConfig = LimitsConfig()
    dead_letter: DeadLetterConfig = DeadLetterConfig()
    alarm: AlarmConfig = AlarmConfig()
    sink: list[SinkTable] = []
    control: ControlConfig = ControlConfig()
    metrics: MetricsConfig = MetricsConfig()
