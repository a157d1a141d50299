"""``stream-gru run``: the daemon."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from stream_gru.bundle import Bundle, load_bundle
from stream_gru.cli.building import build_pipeline, run_daemon, stop_on_signals
from stream_gru.config import ConditioningConfig, Config, InputConfig, load_config, require_running
from stream_gru.daemon import Daemon
from stream_gru.decoders import load_decoder
from stream_gru.decoders.fields import Fields
from stream_gru.errors import ConfigError
from stream_gru.sinks import build_sink
from stream_gru.sources import build_source


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
    """Which columns to read: the bundle's own, unless the file has an [input] table or [[channel]]s of its own.

    Raises ConfigError when the file asks for channels or conditioning that the model was not trained with.
    """
    manifest = bundle.manifest
    if settings.conditioning not in (ConditioningConfig(), manifest.conditioning):
        raise ConfigError(f"{path}: conditioning: expected what the bundle was trained with, {manifest.conditioning}")
    own = InputConfig()
    input_config = manifest.input if settings.input == own else settings.input
    if not settings.channel:
        return Fields.of(input_config, manifest.channels)
    columns = {channel.name: channel for channel in settings.channel}
    missing = [channel.name for channel in manifest.channels if channel.name not in columns]
    if missing:
        raise ConfigError(f"{path}: channel: expected the bundle's channel {missing[0]!r} among them")
    return Fields.of(input_config, [columns[channel.name] for channel in manifest.channels])
