"""What the commands that run a daemon share: signals, and the summary at the end."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click

from stream_gru.core.errors import SinkUnavailable
from stream_gru.runtime.daemon import Daemon
from stream_gru.runtime.run_summary import summary_lines

ENGINE_CHOICE = click.Choice(["auto", "litert", "numpy", "onnx", "keras"])


def stop_on_signals(daemon: Daemon) -> None:
    """SIGTERM and SIGINT end the loop after the batch in hand; a second one ends the process at once."""

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
            sys.exit(1)  # the reader of a pipe has gone: nobody is left to be told
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
