"""``stream-gru demo``: run the shipped model on shipped recordings."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib import resources
from pathlib import Path

import click

from stream_gru import __version__
from stream_gru.cli.daemon import run_daemon, stop_on_signals
from stream_gru.cli.group import ENGINE, FiniteRange
from stream_gru.cli.live_view import LiveView, PlainView
from stream_gru.connectors.sources.files import ReplaySourceConfig
from stream_gru.core.errors import ConfigError
from stream_gru.model.bundle import load_bundle
from stream_gru.model.engines.base import TimedEngine
from stream_gru.model.engines.registry import load_engine
from stream_gru.runtime.daemon import Daemon
from stream_gru.runtime.health import HealthReporter
from stream_gru.runtime.http.server import WebServer
from stream_gru.runtime.metrics import Metrics, build_registry
from stream_gru.runtime.resolved_config import resolve_bundle
from stream_gru.runtime.wiring import build_runtime

_SPEED = 400.0


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path), help="Use the bundle and recordings of this folder.  [default: shipped]"
)
@click.option("--fast", is_flag=True, help="Run as fast as possible, without the live view.")
@click.option(
    "--speed",
    type=FiniteRange(min=0, min_open=True),
    default=_SPEED,
    show_default=True,
    metavar="X",
    help="Replay X times as fast as recorded.",
)
@ENGINE
@click.option(
    "--metrics-listen",
    default="127.0.0.1:0",
    show_default=True,
    metavar="HOST:PORT",
    help="Serve metrics at this address; port 0 takes a free one.",
)
def demo(data: Path | None, fast: bool, speed: float, engine: str, metrics_listen: str) -> None:
    """Run the shipped pump model on held-out recordings.

    Shows values, forecasts, classes and resets, then the scores.  Needs no broker, no training and no hardware.
    """
    folder = data or shipped_samples()
    source = ReplaySourceConfig(files=[str(folder / "held_out" / "*")], speed=0.0 if fast else speed)
    config = resolve_bundle(load_bundle(folder / "pump.bundle"), source, engine=engine)
    metrics = Metrics(build_registry(), config.bundle.manifest, engine, __version__)
    metrics.add_source("replay")
    metrics.add_sink("view")
    loaded = TimedEngine(load_engine(engine, config.bundle), metrics.observe_inference)
    runtime = build_runtime(config, engine=loaded)
    live = sys.stderr.isatty() and not fast
    view = LiveView(runtime.pipeline) if live else PlainView(runtime.pipeline, every_s=0 if fast else 5.0)
    daemon = Daemon(replace(runtime, sinks={"view": view}), health=HealthReporter(metrics=metrics))
    stop_on_signals(daemon)
    server = WebServer(metrics_listen, metrics.registry, lambda: (True, "healthy"), lambda: (daemon.ready, "ready"))
    with ExitStack() as stack:
        server.open()
        stack.callback(server.close)
        view.metrics_address = f"{server.address}/metrics"
        click.echo(f"model {config.bundle.manifest.model_id}, bundle {folder / 'pump.bundle'}", err=True)
        click.echo(f"metrics at {view.metrics_address}", err=True)
        run_daemon(daemon, as_json=False)


def shipped_samples() -> Path:
    """The folder with the bundle and the held-out recording that are part of the package.  Raises ConfigError."""
    folder = Path(str(resources.files("stream_gru.examples"))) / "sample_data"
    if not (folder / "pump.bundle").is_dir():
        raise ConfigError(f"{folder}: expected the folder pump.bundle, found none; name another folder with --data")
    return folder
