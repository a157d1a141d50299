"""What several commands build alike: pipelines, daemons, signals, summaries."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

import click

from stream_gru import __version__
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.registry import load_decoder
from stream_gru.connectors.sources.files import FileSource
from stream_gru.connectors.sources.registry import common_format
from stream_gru.core.errors import SinkUnavailable
from stream_gru.core.protocols import Sink
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.base import TimedEngine
from stream_gru.model.engines.registry import load_engine
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.daemon import Daemon, Input
from stream_gru.runtime.ingest.ingest import Intake
from stream_gru.runtime.metrics import Metrics, build_registry
from stream_gru.runtime.run_summary import summary_lines

ENGINE_CHOICE = click.Choice(["auto", "litert", "numpy", "onnx", "keras"])


def build_pipeline(bundle: Bundle, engine: str, level: float, source: str) -> tuple[Pipeline, Metrics]:
    """A pipeline for recordings whose engine calls are timed, and the metrics that are told."""
    inner = load_engine(engine, bundle)
    metrics = Metrics(build_registry(), bundle.manifest, inner.name, __version__)
    metrics.add_source(source)
    timed = TimedEngine(inner, metrics.observe_inference)
    return Pipeline(bundle, timed, interval_level=level, max_streams=1_000_000), metrics


def build_replay(
    paths: Sequence[Path],
    fields: Fields,
    pipeline: Pipeline,
    sinks: Mapping[str, Sink],
    metrics: Metrics,
    *,
    batch_rows: int = 1024,
    speed: float = 0.0,
) -> Daemon:
    """A daemon that plays recorded files.  Raises ConfigError when they are of several formats."""
    kind = common_format(list(paths), fields.input.format)
    for name in sinks:
        metrics.add_sink(name)
    intake = Intake("replay", load_decoder(kind, fields))
    one = Input("replay", FileSource(paths, kind, batch_rows), {"replay": intake}, speed)
    return Daemon([one], pipeline, sinks, metrics=metrics, batch_rows=batch_rows)


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
