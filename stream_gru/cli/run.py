"""``stream-gru run``: the daemon."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import click
from msgspec.structs import asdict, replace

from stream_gru.bundle import Bundle, load_bundle
from stream_gru.cli.building import build_pipeline, run_daemon, stop_on_signals
from stream_gru.config import (
    ChannelConfig,
    ConditioningConfig,
    Config,
    InputConfig,
    ReplaySourceConfig,
    load_config,
    require_running,
)
from stream_gru.daemon import Daemon
from stream_gru.decoders import load_decoder
from stream_gru.decoders.fields import Fields
from stream_gru.errors import ConfigError
from stream_gru.manifest import Channel
from stream_gru.recordings import shared_stream
from stream_gru.sinks import build_sink
from stream_gru.sources import build_source
from stream_gru.sources.files import expand


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the closing summary as one JSON object.")
def run(config: Path, as_json: bool) -> None:
    """Run the daemon that the CONFIG file describes until its input ends or SIGTERM comes."""
    from stream_gru.web.app import WebServer

    settings = load_config(config)
    require_running(settings, str(config))
    if settings.run is None or settings.source is None:
        raise ConfigError(f"{config}:1: expected the tables [run] and [source]")
    logging.basicConfig(level=settings.run.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    bundle = load_bundle(settings.run.bundle)
    fields = running_fields(settings, bundle, config)
    if isinstance(settings.source, ReplaySourceConfig):
        for line in shared_stream(expand(settings.source.files), fields):
            click.echo(line, err=True)
    source, kind = build_source(settings.source, fields.input, settings.run.batch_rows)
    pipeline, metrics = build_pipeline(
        bundle,
        settings.run.engine,
        settings.run.level,
        settings.run.adapt_rate,
        settings.run.max_streams,
        settings.source.__struct_config__.tag,  # type: ignore[arg-type]
    )
    daemon = Daemon(
        source,
        load_decoder(kind, fields),
        pipeline,
        [build_sink(sink) for sink in settings.sink],
        metrics=metrics,
        batch_rows=settings.run.batch_rows,
        speed=getattr(settings.source, "speed", 0.0),
        wait_for_source=True,
    )
    stop_on_signals(daemon)
    server = None
    if settings.metrics.enabled:
        server = WebServer(
            settings.metrics.listen,
            metrics.registry,
            healthy=lambda: (True, "healthy"),
            ready=lambda: (daemon.ready, "ready" if daemon.ready else "not ready"),
        )
        server.open()
        click.echo(f"metrics at {server.address}/metrics", err=True)
    try:
        run_daemon(daemon, pipeline, as_json=as_json)
    finally:
        if server is not None:
            server.close()


def running_fields(settings: Config, bundle: Bundle, path: Path) -> Fields:
    """Which columns to read: the bundle's own, but for the names that the file has in their place.

    A key of [input] or a column that is not given is the bundle's.  A key that is given with its default counts as not
    given: the checked table no longer tells the two apart.

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
