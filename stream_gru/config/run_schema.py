"""Tables of a running daemon, but for sources and sinks: those stand with their connectors, see `config.connector`."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from msgspec import Meta

from stream_gru.config.field_types import (
    Address,
    BrokerUrl,
    Delimiter,
    EngineName,
    Level,
    Name,
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    Seconds,
    Table,
    TimeUnit,
    Topic,
)
from stream_gru.core.errors import ConfigError


class RunConfig(Table, frozen=True):
    """The daemon: its model, its limits, and how often it commits.

    A commit makes what was processed durable in ``state_dir``, releases outputs and acknowledges inputs.
    """

    bundle: Annotated[str, Meta(description="Folder of the model that training wrote.", examples=["pump.bundle"])]
    engine: Annotated[
        EngineName,
        Meta(description='What computes the network; "auto": litert where it is installed, else numpy.'),
    ] = "auto"
    interval_level: Annotated[
        Level, Meta(description="Share of true values that the interval around a forecast holds.")
    ] = 0.9
    interval_adapt_rate: Annotated[
        NonNegative,
        Meta(description="How fast the interval adapts to its hits and misses; 0: it stays as training measured it."),
    ] = 0.5
    batch_rows: Annotated[
        int,
        Meta(ge=1, le=1_000_000, description="Samples in one batch at most; fewer need less memory."),
    ] = 1024
    max_streams: Annotated[PositiveInt, Meta(description="Streams in memory at most.")] = 1000
    max_streams_policy: Annotated[
        Literal["reject", "evict"],
        Meta(
            description='With more streams than max_streams: "reject" drops the samples of new ones; "evict" moves the '
            "stream that was idle for longest to state_dir, until it sends again."
        ),
    ] = "reject"
    max_stored_streams: Annotated[
        PositiveInt,
        Meta(description='With "evict": streams on disk at most; samples of further streams are dropped.'),
    ] = 100_000
    commit_every: Annotated[PositiveInt, Meta(description="Samples after which a commit is due.")] = 10_000
    commit_interval_s: Annotated[Seconds, Meta(description="Seconds after which a commit is due.")] = 1.0
    stream_idle_timeout_s: Annotated[
        NonNegative,
        Meta(
            description="Seconds without a sample after which a stream is idle; 0: ten periods of the model, at least "
            "10 s."
        ),
    ] = 0.0
    state_dir: Annotated[
        str,
        Meta(
            description="Folder for all that must survive a restart: states of the streams, positions of the inputs, "
            "pending outputs. Empty: nothing survives. Under systemd: /var/lib/stream-gru.",
            examples=["state"],
        ),
    ] = ""
    emit: Annotated[
        Literal["after_commit", "immediate"],
        Meta(
            description='When outputs leave for a broker or server: "after_commit", or "immediate", up to '
            "commit_interval_s earlier; then a kill sends some of them twice, with the same id."
        ),
    ] = "after_commit"
    on_model_change: Annotated[
        Literal["reset", "reject"],
        Meta(
            description='Where stored states are of another model: "reset" resets all streams; "reject" does not start.'
        ),
    ] = "reset"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="Least severe messages that are logged.")
    ] = "info"


class BrokerConfig(Table, frozen=True):
    """An MQTT broker, for sources, sinks and [control].

    Secrets stand in files: ``user_file`` and ``password_file`` are paths, or names of systemd credentials.
    """

    url: Annotated[
        BrokerUrl,
        Meta(
            description="Address: mqtt://host:1883, or mqtts://host:8883 with TLS.",
            examples=["mqtt://127.0.0.1:1883"],
        ),
    ]
    name: Annotated[Name, Meta(description="Name by which sources, sinks and [control] refer to it.")] = "broker"
    protocol: Annotated[Literal["5", "3.1.1"], Meta(description="Version of MQTT.")] = "5"
    client_id: Annotated[
        str,
        Meta(
            max_length=128,
            description="Beginning of the client ids, by which the broker knows the daemon again, used as it stands; "
            "empty: made of the host name and a random part that stays in state_dir.",
        ),
    ] = ""
    keepalive_s: Annotated[int, Meta(ge=1, le=65_535, description="Keep-alive interval in seconds.")] = 30
    session_expiry_s: Annotated[
        int,
        Meta(
            ge=0,
            le=2**32 - 1,
            description="Seconds for which the broker keeps messages while the daemon is not running.",
        ),
    ] = 604_800
    receive_maximum: Annotated[
        int,
        Meta(
            ge=1,
            le=65_535,
            description="Messages that the broker sends before it waits for an acknowledgement; a commit is due at "
            "half of them.",
        ),
    ] = 10_000
    reconnect_max_delay_s: Annotated[
        Seconds,
        Meta(
            description="Longest pause between attempts to connect, in seconds; pauses start at 0.5 s. While another "
            "client uses the client id: a minute at least."
        ),
    ] = 30.0
    user: Annotated[str, Meta(description="User name; empty: none.")] = ""
    user_file: Annotated[str, Meta(description="File with the user name, in place of user.")] = ""
    password_file: Annotated[
        str, Meta(description="File with the password, readable by its owner only, or a systemd credential.")
    ] = ""
    ca_file: Annotated[
        str, Meta(description="Certificate (PEM) of the authority that signed the broker's; empty: the system's.")
    ] = ""
    cert_file: Annotated[
        str, Meta(description="Client certificate (PEM), where the broker asks for one; goes with key_file.")
    ] = ""
    key_file: Annotated[str, Meta(description="Private key (PEM) of cert_file.")] = ""
    insecure_skip_verify: Annotated[
        bool, Meta(description="true: the broker's certificate is not verified; for tests only.")
    ] = False

    def host_and_port(self) -> tuple[str, int]:
        """Where the broker is; 1883 and 8883 are the default ports of ``mqtt`` and ``mqtts``.  Raises ConfigError."""
        parts = urlsplit(self.url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if port == 0 or not parts.hostname:
            raise ConfigError(f"broker {self.name}: url {self.url!r}: expected a host and a port from 1 to 65535")
        return parts.hostname, port or (8883 if parts.scheme == "mqtts" else 1883)


class SourceInputConfig(Table, frozen=True):
    """How the records of one source are read; a key that is absent is that of [input], else the bundle's."""

    delimiter: Annotated[
        Delimiter | None, Meta(description="ASCII character between the fields of CSV.", examples=[","])
    ] = None
    time: Annotated[
        Annotated[str, Meta(max_length=128)] | None,
        Meta(description="Field with the time; empty: the time of arrival counts.", examples=["ts"]),
    ] = None
    time_unit: Annotated[
        TimeUnit | None,
        Meta(description='Form of the time: "iso", or a count since 1970 in "s", "ms", "us" or "ns".', examples=["s"]),
    ] = None
    clock: Annotated[
        Literal["epoch", "boot"],
        Meta(description='"boot": the device counts from its own start, in time_unit, and wraps after 32 bits.'),
    ] = "epoch"
    stream: Annotated[
        str | None,
        Meta(description="Field with the name of the device; empty: the topic or the port names it.", examples=[""]),
    ] = None
    label: Annotated[str | None, Meta(description="Field with the true class.", examples=[""])] = None
    reset: Annotated[
        str | None, Meta(description="Field that resets the stream before its sample: true or 1.", examples=[""])
    ] = None
    episode: Annotated[str | None, Meta(description="Field whose change resets the stream.", examples=[""])] = None
    device_seq: Annotated[
        str | None,
        Meta(description="Field with the device's own sample counter; missing samples are counted.", examples=[""]),
    ] = None
    fields: Annotated[
        list[str],
        Meta(
            description="Names of fields where records have none: columns of CSV without a header, values of "
            "json_vector, members of struct, unlabelled values of a plotter."
        ),
    ] = []
    struct: Annotated[
        str,
        Meta(description="Layout of binary records, in the notation of Python's struct module, such as <Ifff."),
    ] = ""
    checksum: Annotated[
        Literal["none", "crc16", "crc32"], Meta(description="Checksum at the end of binary records.")
    ] = "crc16"


class SourceChannelConfig(Table, frozen=True):
    """Where one channel of the model is found in the records of a source: value = number * scale + offset."""

    name: Annotated[Name, Meta(description="The channel of the model.", examples=["flow"])]
    column: Annotated[
        str,
        Meta(description="Field of the records; empty: the channel's name. Nested fields of JSON: ENERGY.Power."),
    ] = ""
    scale: Annotated[float, Meta(description="Factor from the number in the record to the unit of the model.")] = 1.0
    offset: Annotated[float, Meta(description="Added after the factor, in the unit of the model.")] = 0.0
    unit: Annotated[
        str,
        Meta(
            description="Unit that arrives, where records carry one (SenML); records in another unit are dropped. "
            "Empty: any."
        ),
    ] = ""


class ChannelJoinConfig(Table, frozen=True):
    """How channels that arrive in separate records become samples, on the grid of the model's period, by event time."""

    hold_s: Annotated[
        NonNegative, Meta(description="Seconds for which the last value of a channel is valid; 0: five periods.")
    ] = 0.0
    allowed_lateness_s: Annotated[
        NonNegative, Meta(description="Seconds of event time that a sample waits for its channels; 0: one period.")
    ] = 0.0


class AlarmConfig(Table, frozen=True):
    """Which outputs are alarms."""

    classes: Annotated[
        list[str], Meta(description="Classes that are an alarm.", examples=[["cavitation", "bearing_wear"]])
    ] = []
    consecutive_misses: Annotated[
        NonNegativeInt,
        Meta(
            description="True values in a row, of any target, outside the one-step interval that are an alarm; 0: "
            "never."
        ),
    ] = 0


class ControlConfig(Table, frozen=True):
    """Who may reset, pause and resume streams, over HTTP and MQTT."""

    token_file: Annotated[
        str,
        Meta(
            description="File, or systemd credential, with the token that HTTP commands must carry; empty: none are "
            "accepted.",
            examples=["control.token"],
        ),
    ] = ""
    mqtt: Annotated[bool, Meta(description="Whether commands are accepted over MQTT.")] = False
    broker: Annotated[str, Meta(description="Name of the [[broker]]; empty: the only one.")] = ""
    topic: Annotated[
        Topic,
        Meta(
            description="Topic of commands; responses go to the response topic of the request, else to this topic with "
            "/response after it."
        ),
    ] = "stream_gru/command"


class LimitsConfig(Table, frozen=True):
    """How many samples per second are accepted, by their time of arrival; the rest is dropped and counted."""

    total_hz: Annotated[NonNegative, Meta(description="Samples per second of all streams together; 0: no limit.")] = 0.0
    per_stream_hz: Annotated[NonNegative, Meta(description="Samples per second of each stream; 0: no limit.")] = 0.0


class DeadLetterConfig(Table, frozen=True):
    """A file of messages that could not be decoded, each with its topic, the reason and the place of the bad record."""

    path: Annotated[str, Meta(max_length=4096, description="File of JSON lines; empty: none.")] = ""
    max_bytes: Annotated[
        int,
        Meta(
            ge=65_536,
            description="Size in bytes at which it is renamed with .1 at its end; the earlier one is replaced, and its "
            "messages are counted.",
        ),
    ] = 10_485_760
    max_hz: Annotated[
        PositiveInt,
        Meta(description="Messages that are written in a second at most; further ones are counted."),
    ] = 10_000


class MetricsConfig(Table, frozen=True):
    """The HTTP server: metrics, health, live outputs, commands."""

    enabled: Annotated[bool, Meta(description="Whether there is one.")] = True
    listen: Annotated[
        Address,
        Meta(description="Address and port; 0.0.0.0:9723 is reachable from other machines."),
    ] = "127.0.0.1:9723"
