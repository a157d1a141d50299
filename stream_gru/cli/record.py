"""``stream-gru record``: what arrives, into a file that `replay` plays."""

from __future__ import annotations

from pathlib import Path

import click

from stream_gru.cli.logs import log_to_stderr
from stream_gru.cli.options import FiniteRange
from stream_gru.cli.source_reader import Listener
from stream_gru.connectors.sources.message_log import RecordingWriter
from stream_gru.runtime.resolved_config import load_plan


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File; .gz compresses it.")
@click.option("--seconds", type=FiniteRange(min=0, min_open=True), help="Stop after so many seconds.")
@click.option("--count", type=click.IntRange(1), help="Stop after so many messages.")
@click.option("--source", "only", help="Record this source only, by its name.")
def record(config: Path, out: Path, seconds: float | None, count: int | None, only: str | None) -> None:
    """Write what arrives at the sources of CONFIG to a file, each message as it came, with the time of its arrival.

    `stream-gru replay CONFIG FILE` takes the file in place of the sources and gives the same outputs.
    """
    plan = load_plan(config)
    log_to_stderr(plan.run.log_level)
    listener = Listener(plan, only, seconds)
    listener.stop_on_signals()
    written = 0
    with RecordingWriter(out) as writer:
        for _, raw in listener.messages():
            wanted = raw[: None if count is None else count - written]
            writer.write(wanted)
            writer.flush()
            written += len(wanted)
            if count is not None and written >= count:
                break
    click.echo(f"{written:,} messages in {out}", err=True)
