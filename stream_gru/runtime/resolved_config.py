"""A configuration with everything it refers to: read, checked, and with nothing opened.

`run`, a reload, `record` and `probe` resolve the file first.  What resolves can be started, apart from the outside
world (ports, brokers, disks).

`delivery_warnings` names the delivery guarantees that a configuration cannot give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec import convert
from msgspec.structs import asdict, replace

from stream_gru.config import (
    ChannelConfig,
    ConditioningConfig,
    Config,
    InputConfig,
    SinkContext,
    SinkTable,
    SourceContext,
    SourceTable,
    load_config,
    require_running,
)
from stream_gru.config.connector import ignore
from stream_gru.config.run_schema import BrokerConfig, RunConfig
from stream_gru.connectors.credentials import read_secret
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.mqtt.auth import credentials, is_tls, tls_context
from stream_gru.connectors.registry import CATALOG, build_sink, build_source, load_decoder
from stream_gru.core.errors import ConfigError
from stream_gru.core.protocols import Sink, Source
from stream_gru.model.bundle import Bundle, load_bundle
from stream_gru.model.manifest import Channel
from stream_gru.pipeline.alarms import AlarmRule


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A source with its name, the format of its records, and which field means what; ``broker`` where it uses one."""

    name: str
    config: SourceTable
    format: str
    fields: Fields
    broker: BrokerConfig | None = None

    @property
    def live(self) -> bool:
        """Whether it is unbounded, unlike a recording."""
        return self.config.live

    @property
    def joins_channels(self) -> bool:
        """Whether its channels arrive in separate records: the table, its topics or its format say so."""
        return self.config.join_channels or self.config.splits_channels or self.format == "number"

    def build(
        self,
        *,
        state_dir: str = "",
        batch_rows: int = 1024,
        alone: bool = True,
        wakeup: Callable[[], None] = ignore,
    ) -> Source:
        """Return the source.  Opens nothing.  ``alone``: there is no other.  Raises ConfigError."""
        context = SourceContext(self.name, self.format, self.broker, state_dir, batch_rows, wakeup)
        return build_source(self.config, context, alone=alone)


@dataclass(frozen=True, slots=True)
class SinkSpec:
    """A sink with its name; ``broker`` where it uses one."""

    name: str
    config: SinkTable
    broker: BrokerConfig | None = None

    def build(self, *, immediate: bool = False) -> Sink:
        """Return the sink.  Opens nothing.  ``immediate``: outputs may leave before a commit.  Raises ConfigError."""
        return build_sink(self.config, SinkContext(self.name, self.broker, immediate))


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """Everything that a daemon runs from.  ``token``: of [control], or empty."""

    path: Path
    config: Config
    run: RunConfig
    bundle: Bundle
    sources: tuple[SourceSpec, ...]
    sinks: tuple[SinkSpec, ...]
    control_broker: BrokerConfig | None
    token: str

    @property
    def live(self) -> bool:
        """Whether any source is unbounded."""
        return any(source.live for source in self.sources)


def resolve_file(path: Path, *, read_secrets: bool = True) -> ResolvedConfig:
    """Read a configuration file, its bundle, and everything that they refer to.

    ``read_secrets``: the configuration shall run on this machine, so read its secrets and build each part once.

    Raises ConfigError, BundleError and DataError, with the file's name and what to change.
    """
    config = load_config(path, CATALOG)
    require_running(config, str(path))
    assert config.run is not None  # noqa: S101 - require_running has made sure
    resolved = resolve(path, config, config.run, load_bundle(config.run.bundle), read_secrets=read_secrets)
    if read_secrets:
        _check_parts(resolved)
    return resolved


def resolve_bundle(
    bundle: Bundle, source: SourceTable, *, engine: str = "auto", interval_level: float = 0.9, batch_rows: int = 1024
) -> ResolvedConfig:
    """The configuration of one ``source`` that is read as ``bundle`` says, without sinks and with no limit of streams.

    Raises ConfigError and DataError.
    """
    options = {"engine": engine, "interval_level": interval_level, "batch_rows": batch_rows}
    run = convert(
        {"bundle": str(bundle.path), **options, "max_streams": 1_000_000, "commit_every": 1_000_000}, RunConfig
    )
    return resolve(bundle.path, Config(run=run, source=[source]), run, bundle, read_secrets=False)


def _check_parts(resolved: ResolvedConfig) -> None:
    """Make sure that every part can be built, and that files of secrets, certificates and recordings are there."""
    named = [
        *(one.broker for one in resolved.sources),
        *(one.broker for one in resolved.sinks),
        resolved.control_broker,
    ]
    for broker in {broker.name: broker for broker in named if broker is not None}.values():
        credentials(broker)
        if is_tls(broker):
            tls_context(broker)
    for source in resolved.sources:
        with _named(f"{resolved.path}: source {source.name}"):
            source.build()
        source.config.verify()
    for sink in resolved.sinks:
        with _named(f"{resolved.path}: sink {sink.name}"):
            sink.build()
        sink.config.verify()


@contextmanager
def _named(part: str) -> Iterator[None]:
    """Say in a ConfigError of which part it is."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(*(f"{part}: {problem}" for problem in error.problems)) from error


def resolve(path: Path, config: Config, run: RunConfig, bundle: Bundle, *, read_secrets: bool) -> ResolvedConfig:
    """Resolve a configuration that has been read.  Raises ConfigError."""
    fields = running_fields(config, bundle, path)
    AlarmRule.of(config.alarm).check(bundle.manifest)
    sources = tuple(
        _source(source, name, config, bundle, fields)
        for source, name in zip(config.source, _names(config.source), strict=True)
    )
    sinks = tuple(
        SinkSpec(name, sink, _broker(config, sink.broker_name))
        for sink, name in zip(config.sink, _names(config.sink), strict=True)
    )
    control = _broker(config, config.control.broker) if config.control.mqtt else None
    token = read_secret(config.control.token_file) if read_secrets and config.control.token_file else ""
    return ResolvedConfig(path, config, run, bundle, sources, sinks, control, token)


def _source(source: SourceTable, name: str, config: Config, bundle: Bundle, fields: Fields) -> SourceSpec:
    # A topic or port names the stream, unless the records do.
    named_outside = source.names_streams and source.input.stream is None
    input_config = replace(fields.input, stream="") if named_outside else fields.input
    with _named(f"source {name}"):
        own = Fields.for_source(input_config, _channels(bundle, fields), source.input, source.channel)
        kind = source.record_format(own.input.format)
        load_decoder(kind, own)
    return SourceSpec(name, source, kind, own, _broker(config, source.broker_name))


def _channels(bundle: Bundle, fields: Fields) -> list[Channel]:
    return [
        replace(channel, column=column)
        for channel, column in zip(bundle.manifest.channels, fields.columns, strict=True)
    ]


def _broker(config: Config, name: str | None) -> BrokerConfig | None:
    """The broker of this name, or the first one; the rules have made sure that it exists."""
    return None if name is None else next(broker for broker in config.broker if name in ("", broker.name))


def _names(tables: Sequence[SourceTable | SinkTable]) -> list[str]:
    """Names of sources and sinks: their own, else their type, numbered from the second on."""
    given = [(table.name, table.type_name) for table in tables]
    used: dict[str, int] = {}
    taken = {name for name, _ in given if name}
    names = []
    for own, kind in given:
        name = own
        while not name or (not own and name in taken):
            used[kind] = used.get(kind, 0) + 1
            name = kind if used[kind] == 1 else f"{kind}-{used[kind]}"
        names.append(name)
    return names


def running_fields(settings: Config, bundle: Bundle, path: Path) -> Fields:
    """Which columns to read: the bundle's own, but for the names that the file has in their place.

    A key of [input] or a column that is not given is the bundle's.  A key that is given with its default counts as not
    given: the checked table no longer distinguishes the two.

    Raises ConfigError when the file asks for channels, units, ranges or conditioning that the model was not trained
    with.
    """
    manifest = bundle.manifest
    if settings.conditioning not in (ConditioningConfig(), manifest.conditioning):
        raise ConfigError(f"{path}: conditioning: expected what the bundle was trained with, {manifest.conditioning}")
    own, given, default = asdict(manifest.input), asdict(settings.input), asdict(InputConfig())
    input_config = replace(manifest.input, **{key: given[key] for key in own if given[key] != default[key]})
    if not settings.channel:
        return Fields.of(input_config, manifest.channels)
    theirs = {channel.name: channel for channel in settings.channel}
    problems = [
        problem
        for channel in manifest.channels
        for problem in channel_problems(channel, theirs.get(channel.name), str(path))
    ]
    if problems:
        raise ConfigError(*problems)
    columns = [replace(channel, column=theirs[channel.name].column or channel.column) for channel in manifest.channels]
    return Fields.of(input_config, columns)


def channel_problems(trained: Channel, given: ChannelConfig | None, file_name: str) -> Iterator[str]:
    """Yield what the file says of a channel and the model was not trained with."""
    if given is None:
        yield f"{file_name}: channel: expected the bundle's channel {trained.name!r} among them"
        return
    for key, value in (("unit", given.unit), ("min", given.min), ("max", given.max)):
        expected = getattr(trained, key)
        if value not in ("", None, expected):
            wanted = f"{key} = {expected!r}" if expected is not None else f"no {key}"
            yield f"{file_name}: channel: expected {wanted} for {trained.name!r}, as trained, got {value!r}"


def delivery_warnings(resolved: ResolvedConfig) -> Iterator[str]:
    """Where a configuration gives less than exactly once, a sentence each."""
    run = resolved.run
    if not run.state_dir and resolved.live:
        yield "run.state_dir is not set: states and pending outputs are lost with the process"
    for source in resolved.sources:
        if source.live and (not source.fields.input.time or source.format == "number"):
            yield f"source {source.name}: records carry no time: one that is sent again gets its new time of arrival"
        if source.broker is not None and not (run.state_dir or source.broker.client_id):
            yield f"source {source.name}: run.state_dir is not set: what is sent while the daemon does not run is lost"
        for line in source.config.delivery_warnings(source.broker):
            yield f"source {source.name}: {line}"
    if resolved.config.limits.total_hz or resolved.config.limits.per_stream_hz:
        yield "limits: recent rates are not stored: after a kill other samples may be dropped than without it"
    for sink in resolved.sinks:
        for line in sink.config.delivery_warnings():
            yield f"sink {sink.name}: {line}"
