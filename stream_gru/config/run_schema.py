"""Tables of a running daemon: brokers, sources, sinks, and what happens between them."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from stream_gru.config.field_types import (
    Address,
    BrokerUrl,
    Delimiter,
    HttpUrl,
    Level,
    LiveFormat,
    Name,
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    Seconds,
    SourceName,
    Table,
    TimeUnit,
    Topic,
)


class RunConfig(Table, frozen=True):
    """The daemon: which bundle, which engine, how much at once.

    What was processed is committed (made durable in ``state_dir``, inputs acknowledged) after ``commit_every`` samples
    or ``commit_interval_s`` seconds, whichever comes first; ``emit``: whether outputs leave after that or at once.  A
    stream is idle when no sample came for ``stream_idle_timeout_s``; 0: ten periods of the model, at least 10 s.
    """

    bundle: str
    engine: Literal["auto", "litert", "numpy", "onnx", "keras"] = "auto"
    interval_level: Level = 0.9
    interval_adapt_rate: NonNegative = 0.5
    batch_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 1024
    max_streams: PositiveInt = 1000
    max_streams_policy: Literal["reject", "evict"] = "reject"
    max_stored_streams: PositiveInt = 100_000
    commit_every: PositiveInt = 500
    commit_interval_s: Seconds = 1.0
    stream_idle_timeout_s: NonNegative = 0.0
    state_dir: str = ""
    emit: Literal["after_commit", "immediate"] = "after_commit"
    on_model_change: Literal["reset", "reject"] = "reset"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class BrokerConfig(Table, frozen=True):
    """An MQTT broker.  ``url``: ``mqtt://host[:1883]`` or, with TLS, ``mqtts://host[:8883]``.

    Secrets stand in files, never here: ``password_file`` and ``user_file`` are paths, or names of systemd credentials.
    An empty ``client_id`` is made of the machine's name, so that the broker knows the daemon again.
    """

    url: BrokerUrl
    name: Name = "broker"
    protocol: Literal["5", "3.1.1"] = "5"
    client_id: Annotated[str, Meta(max_length=128)] = ""
    keepalive_s: Annotated[int, Meta(ge=1, le=65_535)] = 30
    session_expiry_s: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 604_800
    receive_maximum: Annotated[int, Meta(ge=1, le=65_535)] = 1000
    reconnect_max_delay_s: Seconds = 30.0
    user: str = ""
    user_file: str = ""
    password_file: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    insecure_skip_verify: bool = False


class SourceInputConfig(Table, frozen=True):
    """How the records of one source are read; a key that is not given is that of [input], else the bundle's.

    ``time = ""``: records carry no time, that of their arrival counts.  ``clock = "boot"``: the device counts from its
    start, in ``time_unit``, and begins again after 32 bits.  ``fields``: names of what has none: the columns of CSV
    without a header, the values of ``json_vector``, the members of ``struct``, the unlabelled values of a plotter.
    ``struct``: format of Python's `struct` module for ``binary``.
    """

    delimiter: Delimiter | None = None
    time: Annotated[str, Meta(max_length=128)] | None = None
    time_unit: TimeUnit | None = None
    clock: Literal["epoch", "boot"] = "epoch"
    stream: str | None = None
    label: str | None = None
    reset: str | None = None
    episode: str | None = None
    device_seq: str | None = None
    fields: list[str] = []
    struct: str = ""
    checksum: Literal["none", "crc16", "crc32"] = "crc16"


class SourceChannelConfig(Table, frozen=True):
    """Where one channel of the model is found in the records of a source: ``value = number * scale + offset``.

    ``unit``: the unit that arrives, where records carry one; records of another unit are dropped.
    """

    name: Name
    column: str = ""
    scale: float = 1.0
    offset: float = 0.0
    unit: str = ""


class LiveSource(Table, frozen=True):
    """What every source has.  ``name`` is its label in metrics; empty, it is its type, numbered from the second on.

    ``join_channels``: channels arrive in separate records and are joined, see [channel_join].  ``queue_*`` bound what
    waits to be processed.
    """

    name: SourceName = ""
    join_channels: bool = False
    queue_size: PositiveInt = 10_000
    queue_bytes: PositiveInt = 67_108_864
    input: SourceInputConfig = SourceInputConfig()
    channel: list[SourceChannelConfig] = []


class ReplaySourceConfig(LiveSource, frozen=True, kw_only=True, tag_field="type", tag="replay"):
    """Recorded files, in the order given.  ``speed`` 1 is as recorded, 0 as fast as possible."""

    files: list[str]
    speed: NonNegative = 0.0


class StdinSourceConfig(LiveSource, frozen=True, kw_only=True, tag_field="type", tag="stdin"):
    """Lines on standard input; ``format`` must be stated, as there is no file name to tell it."""

    format: Literal["csv", "jsonl", "json_vector", "plotter", "line_protocol", "senml"]


class MqttSourceConfig(LiveSource, frozen=True, kw_only=True, tag_field="type", tag="mqtt"):
    """Topics of a broker.  ``{stream}``, ``{channel}`` and other names in braces stand for one level of a topic.

    ``stream_id``: what the stream is called, of the names in braces; empty, all but ``{channel}`` joined by ``/``.
    """

    topics: list[Annotated[str, Meta(min_length=1, max_length=1024)]]
    format: LiveFormat
    broker: str = ""
    stream_id: str = ""
    qos: Literal[0, 1] = 1
    accept_retained: bool = False
    max_payload_bytes: Annotated[int, Meta(ge=1, le=268_435_455)] = 65_536


class SerialSourceConfig(LiveSource, frozen=True, kw_only=True, tag_field="type", tag="serial"):
    """A serial port: a device, or any URL of pyserial (``socket://``, ``rfc2217://``, ``loop://``, ``hwgrep://``).

    ``framing``: what separates records; ``cobs`` frames end with a zero byte.  ``stream``: the name of the one device
    behind the port; empty, the name of the source.
    """

    port: Annotated[str, Meta(min_length=1, max_length=1024)]
    format: LiveFormat
    framing: Literal["lines", "cobs"] = "lines"
    stream: str = ""
    baud_rate: Annotated[int, Meta(ge=50, le=12_000_000)] = 115_200
    data_bits: Literal[5, 6, 7, 8] = 8
    parity: Literal["none", "even", "odd"] = "none"
    stop_bits: Literal[1, 2] = 1
    exclusive: bool = True
    max_frame_bytes: Annotated[int, Meta(ge=16, le=1_048_576)] = 4096
    reconnect_max_delay_s: Seconds = 10.0


class ChannelJoinConfig(Table, frozen=True):
    """How channels that arrive apart become samples, on the grid of the model's period, by event time.

    A value is held for ``hold_s`` (0: five periods); a sample waits ``allowed_lateness_s`` (0: one period) for its
    channels.
    """

    hold_s: NonNegative = 0.0
    allowed_lateness_s: NonNegative = 0.0


class AnySink(Table, frozen=True):
    """What every sink has.  ``name`` is its label in metrics, and that under which its outputs are stored; empty, it is
    its type, numbered from the second on.  ``throttle``: ``none`` writes every output, ``interval`` one of each stream
    every ``interval_s`` seconds of event time, ``change`` those where class, alarm or trust changes.
    """

    name: SourceName = ""
    throttle: Literal["none", "interval", "change"] = "none"
    interval_s: Seconds = 60.0


class FileSinkConfig(AnySink, frozen=True, kw_only=True, tag_field="type", tag="file"):
    """One file; ``.jsonl``, ``.csv`` or ``.lp`` (line protocol) by name, compressed when the name ends ``.gz``.

    It is put aside and begun anew at ``rotate_bytes`` or after ``rotate_s`` (0: never); the newest ``max_files`` stay.
    """

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    rotate_bytes: NonNegativeInt = 0
    rotate_s: NonNegative = 0.0
    max_files: PositiveInt = 10


class StdoutSinkConfig(AnySink, frozen=True, kw_only=True, tag_field="type", tag="stdout"):
    """Standard output."""

    format: Literal["jsonl", "csv", "line_protocol"] = "jsonl"


class InfluxSinkConfig(AnySink, frozen=True, kw_only=True, tag_field="type", tag="influx"):
    """Line protocol over HTTP: InfluxDB, Telegraf, VictoriaMetrics.  ``url`` is the whole address of ``write``.

    ``token_file``: a path or the name of a systemd credential.  ``queue_size`` bounds what waits for the server.
    """

    url: HttpUrl
    measurement: Name = "stream_gru"
    token_file: str = ""
    queue_size: PositiveInt = 10_000
    when_full: Literal["block", "drop_oldest"] = "drop_oldest"
    timeout_s: Seconds = 5.0


class MqttSinkConfig(AnySink, frozen=True, kw_only=True, tag_field="type", tag="mqtt"):
    """Publishes each output as JSON to ``topic``; ``{stream}`` stands for the stream's name.

    ``status_topic``: ``online`` or ``offline``, retained, with a last will.  ``availability_topic`` (has ``{stream}``):
    the same of each stream, offline while silent and after the end; empty: none.  ``home_assistant``: devices and
    sensors appear there by themselves.
    """

    broker: str = ""
    topic: Topic = "stream_gru/{stream}/prediction"
    status_topic: Topic = "stream_gru/status"
    availability_topic: Annotated[str, Meta(max_length=1024)] = "stream_gru/{stream}/availability"
    qos: Literal[0, 1] = 1
    retain: bool = False
    message_expiry_s: NonNegativeInt = 0
    queue_size: PositiveInt = 10_000
    when_full: Literal["block", "drop_oldest"] = "block"
    home_assistant: bool = False
    discovery_prefix: Topic = "homeassistant"


class AlarmConfig(Table, frozen=True):
    """When an output is an alarm: its class is one of ``classes``, or the truth lay outside the one-step interval of
    any target ``consecutive_misses`` times in a row (0: never).
    """

    classes: list[str] = []
    consecutive_misses: NonNegativeInt = 0


class ControlConfig(Table, frozen=True):
    """Who may reset, pause and resume streams: over HTTP with the token in ``token_file``; over MQTT on ``topic``.

    Answers go to the response topic of the request, else to ``topic`` with ``/response`` after it.
    """

    token_file: str = ""
    mqtt: bool = False
    broker: str = ""
    topic: Topic = "stream_gru/command"


class LimitsConfig(Table, frozen=True):
    """How many samples are taken a second, of all sources, by the time of their arrival; 0: no limit.

    What is too much is dropped.
    """

    total_hz: NonNegative = 0.0
    per_stream_hz: NonNegative = 0.0


class DeadLetterConfig(Table, frozen=True):
    """A file for messages that could not be read, with the reason; empty: none.  At ``max_bytes`` it is put aside."""

    path: Annotated[str, Meta(max_length=4096)] = ""
    max_bytes: Annotated[int, Meta(ge=65_536)] = 10_485_760


class MetricsConfig(Table, frozen=True):
    """The HTTP endpoints ``/metrics``, ``/-/healthy`` and ``/-/ready``."""

    enabled: bool = True
    listen: Address = "127.0.0.1:9723"


SourceConfig = ReplaySourceConfig | StdinSourceConfig | MqttSourceConfig | SerialSourceConfig
SinkConfig = FileSinkConfig | StdoutSinkConfig | MqttSinkConfig | InfluxSinkConfig
