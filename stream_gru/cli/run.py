"""``stream-gru run``: the daemon; and what the commands that run one share: signals, log lines, the summary."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import click

from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import SinkUnavailable
from stream_gru.runtime.daemon import Daemon
from stream_gru.runtime.resolved_config import ResolvedConfig, delivery_warnings, resolve_file
from stream_gru.runtime.run_summary import summary_lines

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
