"""A whole configuration file: the tables of training, those that training and running share, and those of a daemon.

``[input]``, ``[[channel]]`` and ``[conditioning]`` are copied into the bundle by training, so that a daemon needs none
of them.  Constraints, descriptions and examples stand in the types (`msgspec.Meta`): one walk over them checks a file,
prints the samples and the reference, and words the expectation in an error.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from stream_gru.config.connector import SinkTable, SourceTable
from stream_gru.config.field_types import (
    MAX_CATEGORIES,
    Delimiter,
    FileFormat,
    Fraction,
    Name,
    NonNegative,
    NonNegativeInt,
    Period,
    Positive,
    PositiveInt,
    Seconds,
    Seed,
    Table,
    TimeUnit,
)
from stream_gru.config.model_schema import ModelConfig
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

_CHANNELS = [
    {"name": "flow", "unit": "L/min"},
    {"name": "pressure", "unit": "kPa"},
    {"name": "current", "unit": "A"},
    {"name": "vibration", "unit": "mm/s"},
]


class InputConfig(Table, frozen=True):
    """How a record is read.  Names are columns of CSV and Parquet files, or keys of JSON."""

    format: Annotated[FileFormat, Meta(description='Format of recorded files; "auto": by their names.')] = "auto"
    delimiter: Annotated[Delimiter, Meta(description=r'ASCII character between the columns of CSV; "\t": a tab.')] = ","
    time: Annotated[Name, Meta(description="Column with the time of the measurement.")] = "time"
    time_unit: Annotated[
        TimeUnit,
        Meta(
            description='Form of the time: "iso" (2026-03-01T06:00:00Z), or a count since 1970 in "s", "ms", "us" or '
            '"ns".'
        ),
    ] = "iso"
    stream: Annotated[
        str,
        Meta(description="Column that names the device; empty: one file is one device.", extra={"sample": "pump"}),
    ] = ""
    label: Annotated[
        str,
        Meta(description="Column with the known class, needed by [model.classes].", extra={"sample": "mode"}),
    ] = ""
    reset: Annotated[str, Meta(description="Column that is true where the state is reset.", examples=["restarted"])] = (
        ""
    )
    episode: Annotated[str, Meta(description="Column whose change resets the state.", examples=["batch_number"])] = ""
    device_seq: Annotated[
        str,
        Meta(
            description="Column with the device's own sample counter, which shows lost and repeated samples.",
            examples=["seq"],
        ),
    ] = ""


class ChannelConfig(Table, frozen=True):
    """One measured quantity, in the order in which the model has them; or one of N categories, written 0 to N - 1."""

    name: Annotated[Name, Meta(description="Name in forecasts and metrics.", examples=["flow"])]
    unit: Annotated[str, Meta(description="Unit of the values and forecasts, for display.")] = ""
    column: Annotated[
        str, Meta(description="Column of the recordings; empty: the channel's name.", examples=["FT-101"])
    ] = ""
    min: Annotated[
        float | None, Meta(description="Lowest valid value; values below count as missing.", examples=[0.0])
    ] = None
    max: Annotated[
        float | None, Meta(description="Highest valid value; values above count as missing.", examples=[500.0])
    ] = None
    categories: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_CATEGORIES,
            description="Number of categories, such as the positions of a switch; 0: the channel is a quantity.",
        ),
    ] = 0


class DataConfig(Table, frozen=True):
    """The recordings to train on."""

    files: Annotated[
        list[str],
        Meta(description="Files or patterns.", examples=[["pump-1.csv", "pump-2.csv", "pump-3.csv"]]),
    ]
    period_s: Annotated[Period, Meta(description="Seconds from one sample to the next: one step.", examples=[1.0])]
    ignore_labels: Annotated[
        list[str],
        Meta(description="Classes that are not learnt, such as maintenance.", examples=[["maintenance"]]),
    ] = []


class SplitConfig(Table, frozen=True):
    """What is kept apart: the validation part ends training in time, the test part measures the result."""

    by: Annotated[
        Literal["time", "stream"],
        Meta(description='"time": the last part of every recording; "stream": whole devices.'),
    ] = "time"
    validation: Annotated[Fraction, Meta(description='by = "time": share of each recording for validation.')] = 0.15
    test: Annotated[
        Fraction, Meta(description='by = "time": share of each recording for the test; the two are below 1 together.')
    ] = 0.15
    validation_from: Annotated[
        str,
        Meta(
            description='by = "time": start of validation as a date and time, in place of the shares; goes with '
            "test_from.",
            examples=["2026-03-05T00:00:00Z"],
        ),
    ] = ""
    test_from: Annotated[
        str,
        Meta(description='by = "time": start of the test, after validation_from.', examples=["2026-03-06T00:00:00Z"]),
    ] = ""
    until: Annotated[
        str,
        Meta(description='by = "time": end of what is used at all.', examples=["2026-03-07T00:00:00Z"]),
    ] = ""
    validation_streams: Annotated[
        list[str],
        Meta(description='by = "stream": names or patterns of the devices for validation.', examples=[["pump-2"]]),
    ] = []
    test_streams: Annotated[
        list[str],
        Meta(description='by = "stream": names or patterns of the devices for the test.', examples=[["pump-3"]]),
    ] = []


class ConditioningConfig(Table, frozen=True):
    """What happens where samples are missing or the clock is wrong."""

    max_fill_steps: Annotated[
        NonNegativeInt,
        Meta(description="Longest gap that is filled, in steps; a longer one resets the stream."),
    ] = 5
    clock_backwards_s: Annotated[
        Seconds,
        Meta(
            description="Seconds that the clock of a device may jump back: beyond them the stream is reset, below them "
            "late samples are dropped."
        ),
    ] = 3600.0


class TrainingConfig(Table, frozen=True):
    """How the weights are found."""

    regime: Annotated[
        Literal["stateful", "windowed"],
        Meta(
            description='"stateful": the state is carried through the recording, as it is live; "windowed": every '
            "window starts from the initial state."
        ),
    ] = "stateful"
    batch_size: Annotated[
        PositiveInt, Meta(description="Pieces of recordings (stateful) or windows (windowed) in one batch.")
    ] = 32
    bptt_steps: Annotated[
        PositiveInt,
        Meta(
            description="stateful: steps that gradients run back (truncated BPTT); the state is carried to the next "
            "batch."
        ),
    ] = 64
    window: Annotated[PositiveInt, Meta(description="windowed: length of a window, in steps.")] = 64
    stride: Annotated[
        PositiveInt, Meta(description="windowed: steps from the start of one window to the next, window at most.")
    ] = 16
    window_loss: Annotated[
        Literal["every", "last"],
        Meta(description='windowed: the loss counts "every" step of a window or only the "last" one.'),
    ] = "every"
    warm_up: Annotated[
        NonNegativeInt,
        Meta(description="Steps after a reset that do not count in the loss and are marked when running."),
    ] = 0
    augment_gain: Annotated[
        Fraction,
        Meta(
            description="Augmentation for devices that were not recorded: each epoch multiplies and shifts every "
            "recording by random amounts, like a sensor with another calibration. Standard deviation of the factor "
            "around 1."
        ),
    ] = 0.0
    augment_offset: Annotated[
        NonNegative,
        Meta(description="Standard deviation of the shift, in standard deviations of the channel."),
    ] = 0.0
    augment_noise: Annotated[
        NonNegative,
        Meta(
            description="Noise added to every input, drawn again in each epoch, against overfitting; forecast targets "
            "stay as measured. In standard deviations of the channel."
        ),
    ] = 0.0
    augment_channel_shift: Annotated[
        NonNegativeInt,
        Meta(
            description="For neighbouring channels, as of a line camera or a spectrum, and classes only: each epoch "
            "shifts every recording by up to this many channels; the edge values are repeated."
        ),
    ] = 0
    shuffle: Annotated[
        bool, Meta(description="Whether each epoch takes windows or recordings in another random order.")
    ] = True
    epochs: Annotated[PositiveInt, Meta(description="Epochs (passes over all recordings) at most.")] = 20
    max_updates: Annotated[
        NonNegativeInt,
        Meta(description="Updates (optimizer steps on one batch) at most, in place of epochs; 0: epochs count."),
    ] = 0
    evaluate_every: Annotated[
        NonNegativeInt,
        Meta(description="Updates from one validation to the next; 0: validation after each epoch."),
    ] = 0
    patience: Annotated[
        PositiveInt,
        Meta(description="Early stopping: validations without a better loss before training ends."),
    ] = 5
    restore_best_weights: Annotated[
        bool,
        Meta(
            description="Whether to keep the weights with the best validation loss, or the last ones, which ignores "
            "patience."
        ),
    ] = True
    ema_momentum: Annotated[
        Fraction,
        Meta(
            description="Momentum of an exponential moving average of the weights; the average is what is validated "
            "and kept. 0.999 averages over about 1000 updates, which evens out a large learning_rate; 0: the weights "
            "themselves."
        ),
    ] = 0.0
    optimizer: Annotated[Literal["adam", "adamw", "rmsprop", "sgd"], Meta(description="Optimizer.")] = "adam"
    learning_rate: Annotated[Positive, Meta(description="Learning rate.")] = 0.001
    schedule: Annotated[
        Literal["constant", "cosine"],
        Meta(description='"constant": the learning rate stays; "cosine": it falls to 0 by the end of training.'),
    ] = "constant"
    clip_norm: Annotated[
        NonNegative,
        Meta(description="Largest norm of the gradients of a batch; longer ones are scaled down; 0: no limit."),
    ] = 1.0
    seed: Annotated[Seed, Meta(description="Random seed: the same seed gives the same model.")] = 1
    tensorboard: Annotated[
        str, Meta(description="Folder for TensorBoard logs; empty: none.", examples=["tensorboard"])
    ] = ""


class Config(Table, frozen=True):
    """A whole file.  `train` needs data, channel and model; `run` needs run and at least one source and sink."""

    input: InputConfig = InputConfig()
    channel: Annotated[list[ChannelConfig], Meta(extra={"sample": _CHANNELS})] = []
    data: Annotated[DataConfig | None, Meta(extra={"sample": {}})] = None
    split: SplitConfig = SplitConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    model: Annotated[ModelConfig | None, Meta(extra={"sample": {}})] = None
    training: TrainingConfig = TrainingConfig()
    run: Annotated[RunConfig | None, Meta(extra={"sample": {}})] = None
    source: list[SourceTable] = []
    broker: list[BrokerConfig] = []
    channel_join: ChannelJoinConfig = ChannelJoinConfig()
    alarm: AlarmConfig = AlarmConfig()
    sink: list[SinkTable] = []
    control: ControlConfig = ControlConfig()
    limits: LimitsConfig = LimitsConfig()
    dead_letter: DeadLetterConfig = DeadLetterConfig()
    metrics: MetricsConfig = MetricsConfig()
