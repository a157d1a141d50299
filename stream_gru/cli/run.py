"""``stream-gru run`` and ``stream-gru replay``; what commands that run a pipeline share: signals, log, summary."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

import click
from msgspec import structs

from stream_gru.cli.group import FiniteRange, check_engine
from stream_gru.connectors.registry import CATALOG
from stream_gru.connectors.sinks.encoders import ENCODERS
from stream_gru.connectors.sinks.file import file_sink
from stream_gru.connectors.sinks.stdout import StdoutSink
from stream_gru.connectors.sources.files import ReplaySourceConfig, expand, shared_stream
from stream_gru.connectors.sources.message_log import MessageLogSource
from stream_gru.core.errors import DataError, SinkUnavailable
from stream_gru.core.protocols import Sink
from stream_gru.model.bundle import load_bundle
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.daemon import Daemon
from stream_gru.runtime.resolved_config import ResolvedConfig, delivery_warnings, resolve_bundle, resolve_file
from stream_gru.runtime.run_summary import summary_lines
from stream_gru.runtime.wiring import Runtime, build_runtime

log = logging.getLogger(__name__)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def run(config: Path, as_json: bool) -> None:
    """Run the daemon that CONFIG describes.

    It ends when all inputs end, or on SIGTERM.  SIGHUP reloads CONFIG; an invalid file is rejected and the old
    configuration keeps running.
    """
    from stream_gru.runtime.app import Application

    resolved = resolve_file(config)
    log_to_stderr(resolved.run.log_level)
    _warn(resolved)
    app = Application(resolved)
    stop_on_signals(app.daemon)

    def reload(_: int, __: FrameType | None) -> None:
        app.daemon.call_soon(app.reload)

    signal.signal(signal.SIGHUP, reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    with ExitStack() as stack:
        stack.callback(app.close)
        app.open()
        if app.address:
            click.echo(f"metrics at {app.address}/metrics", err=True)
        run_daemon(app.daemon, as_json=as_json)


def _warn(config: ResolvedConfig) -> None:
    """Log the limits of the delivery guarantees, and streams that several recordings share."""
    for source in config.sources:
        for line in source.config.input_warnings(source.fields.input.stream):
            click.echo(line, err=True)
    for line in (*CATALOG.warnings(), *delivery_warnings(config)):
        log.warning("%s", line)


# Syslog priorities, which the journal reads at the beginning of a line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def stop_on_signals(daemon: Daemon) -> None:
    """Stop the loop after the current batch on SIGTERM or SIGINT; a second signal ends the process at once."""

    def handle(number: int, _: FrameType | None) -> None:
        daemon.stop()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)


def run_daemon(daemon: Daemon, *, as_json: bool, quiet: bool = False) -> None:
    """Run to the end and print the summary on standard error."""
    try:
        daemon.run()
    except SinkUnavailable as error:
        if isinstance(error.__cause__, BrokenPipeError):
            sys.exit(1)  # the reader of the pipe has closed it
        raise
    finally:
        if not daemon.summary.balanced:
            logging.getLogger(__name__).error("samples unaccounted for: %s", daemon.summary)
    if quiet:
        return
    result = daemon.summary.as_dict(daemon.pipeline.scores(), daemon.pipeline.spec.level)
    lines: Sequence[str] = [json.dumps(result)] if as_json else summary_lines(result, daemon.pipeline.spec.targets)
    for line in lines:
        click.echo(line, err=True)


def log_to_stderr(level: str) -> None:
    """Log this level and above, with times unless the journal adds them."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _JournalFormatter(logging.Formatter):
    """Prefixes every line with its priority: ``<4>name: message``."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


_LEVEL = 0.9


@click.command()
@click.argument("model", metavar="BUNDLE|CONFIG", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write outputs to this .jsonl or .csv file (also .gz).")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    envvar="STREAM_GRU_REPLAY_FORMAT",
    show_default=True,
    help="Format on standard output.",
)
@click.option(
    "--speed", type=FiniteRange(min=0, min_open=True), metavar="X", help="Replay X times as fast as recorded."
)
@click.option("--fast", is_flag=True, help="Replay as fast as possible (default).")
@click.option("--engine", callback=check_engine, metavar="NAME", help="Use this engine.  [default: auto, or CONFIG]")
@click.option(
    "--interval-level",
    type=FiniteRange(0, 1, min_open=True, max_open=True),
    metavar="L",
    help="Cover the true value with probability L.  [default: 0.9, or CONFIG]",
)
@click.option(
    "--batch-rows",
    type=click.IntRange(1, 1_000_000),
    default=1024,
    show_default=True,
    metavar="N",
    help="Process N samples per batch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Do not print the summary.")
def replay(
    model: Path,
    files: tuple[str, ...],
    out: Path | None,
    form: str,
    speed: float | None,
    fast: bool,
    engine: str | None,
    interval_level: float | None,
    batch_rows: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run recorded FILES through a bundle or a daemon's configuration.

    With a BUNDLE, FILES are CSV, JSON lines or Parquet; patterns such as "data/*.csv" are expanded.  With the CONFIG of
    a daemon, FILES are recordings of `stream-gru record`: they replace the daemon's sources, and the outputs go to this
    command's file instead of the daemon's sinks.
    """
    if fast and speed:
        raise click.UsageError("--fast and --speed exclude each other")
    sink = StdoutSink(ENCODERS[form]()) if out is None else file_sink(out, append=False)
    with ExitStack() as stack:
        runtime = (
            _messages_runtime(model, files, sink, engine, interval_level, batch_rows, speed or 0.0, stack)
            if model.is_file()
            else _samples_runtime(model, files, sink, engine, interval_level, batch_rows, speed or 0.0)
        )
        daemon = Daemon(runtime)
        stop_on_signals(daemon)
        run_daemon(daemon, as_json=as_json, quiet=quiet)
    if not daemon.summary.applied and not daemon.stopped:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(daemon.summary.dropped.items()))
        raise DataError(f"{', '.join(files)}: expected at least one valid sample, got {reasons or 'no rows'}")


def _samples_runtime(
    path: Path, files: Sequence[str], sink: Sink, engine: str | None, level: float | None, batch_rows: int, speed: float
) -> Runtime:
    """The runtime that plays recorded samples."""
    bundle, paths = load_bundle(path), expand(files)
    source = ReplaySourceConfig(files=list(files), speed=speed)
    config = resolve_bundle(
        bundle, source, engine=engine or "auto", interval_level=level or _LEVEL, batch_rows=batch_rows
    )
    for line in shared_stream(paths, config.sources[0].fields.input.stream):
        click.echo(line, err=True)
    return build_runtime(config, sinks={"output": sink})


def _messages_runtime(
    path: Path,
    files: Sequence[str],
    sink: Sink,
    engine: str | None,
    level: float | None,
    batch_rows: int,
    speed: float,
    stack: ExitStack,
) -> Runtime:
    """The runtime that plays recorded messages as the daemon of a configuration would process them.

    Where the daemon evicts idle streams, they go to a temporary store, which ``stack`` deletes.
    """
    config = resolve_file(path, read_secrets=False)
    run = structs.replace(
        config.run,
        engine=engine or config.run.engine,
        interval_level=level or config.run.interval_level,
        batch_rows=batch_rows,
    )
    store = None
    if run.max_streams_policy == "evict":
        store = Store(Path(stack.enter_context(TemporaryDirectory(prefix="stream-gru-replay-"))))
    return build_runtime(
        replace(config, run=run),
        recording=MessageLogSource(expand(files)),
        speed=speed,
        sinks={"output": sink},
        store=store,
    )
