"""What several commands build alike: pipelines, daemons, signals, summaries."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click
from prometheus_client import CollectorRegistry
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from stream_gru import __version__
from stream_gru.bundle import Bundle
from stream_gru.daemon import Daemon
from stream_gru.engines import load_engine
from stream_gru.engines.timed import TimedEngine
from stream_gru.errors import SinkUnavailable
from stream_gru.metrics import Metrics
from stream_gru.pipeline import Pipeline
from stream_gru.summary import summary_lines

ENGINE_CHOICE = click.Choice(["auto", "litert", "numpy", "keras"])


def build_metrics(bundle: Bundle, source: str, engine: str) -> Metrics:
    """Metrics in a registry of their own, beside those of the process."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return Metrics(registry, bundle.manifest, source, engine, __version__)


def build_pipeline(
    bundle: Bundle, engine: str, level: float, adapt_rate: float, max_streams: int, source: str
) -> tuple[Pipeline, Metrics]:
    """A pipeline whose engine calls are timed, and the metrics that are told."""
    inner = load_engine(engine, bundle)
    metrics = build_metrics(bundle, source, inner.name)
    timed = TimedEngine(inner, metrics.observe_inference)
    return Pipeline(bundle, timed, level=level, adapt_rate=adapt_rate, max_streams=max_streams), metrics


def stop_on_signals(daemon: Daemon) -> None:
    """SIGTERM and SIGINT end the loop after the batch in hand; a second one ends the process at once."""

    def handle(number: int, _: FrameType | None) -> None:
        daemon.stop()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def run_daemon(daemon: Daemon, pipeline: Pipeline, *, as_json: bool, quiet: bool = False) -> None:
    """Run to the end and print the summary on standard error."""
    try:
        daemon.run()
    except SinkUnavailable as error:
        if isinstance(error.__cause__, BrokenPipeError):
            sys.exit(1)  # the reader of a pipe has gone: nobody is left to be told
        raise
    finally:
        if not daemon.summary.balanced:
            logging.getLogger(__name__).error("samples unaccounted for: %s", daemon.summary)
    if quiet:
        return
    result = daemon.summary.as_dict(pipeline.scores(), pipeline.spec.level)
    lines: Sequence[str] = [json.dumps(result)] if as_json else summary_lines(result, pipeline.spec.targets)
    for line in lines:
        click.echo(line, err=True)
