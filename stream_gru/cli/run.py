"""``stream-gru run``: run the daemon of a configuration."""

from __future__ import annotations

import logging
import signal
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import click

from stream_gru.cli.daemon import log_to_stderr, run_daemon, stop_on_signals
from stream_gru.connectors.catalog import CATALOG
from stream_gru.runtime.delivery_guarantees import delivery_warnings
from stream_gru.runtime.resolved_config import ResolvedConfig, resolve_file

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
