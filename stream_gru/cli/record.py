"""``stream-gru record``: write the messages of the sources to a file for `replay`."""

from __future__ import annotations

from pathlib import Path

import click

from stream_gru.cli.group import FiniteRange
from stream_gru.cli.probe import SourceReader
from stream_gru.cli.run import log_to_stderr
from stream_gru.connectors.sources.message_log import RecordingWriter
from stream_gru.runtime.resolved_config import resolve_file


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Write this file; compress it if its name ends in .gz.",
)
@click.option("--seconds", type=FiniteRange(min=0, min_open=True), metavar="S", help="Stop after S seconds.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Stop after N messages.")
@click.option("--source", "only", metavar="NAME", help="Record only this source.")
def record(config: Path, out: Path, seconds: float | None, count: int | None, only: str | None) -> None:
    """Record the messages of the sources of CONFIG to a file.

    Each message is written unchanged, with its arrival time.  `stream-gru replay CONFIG FILE` reads the file instead of
    the sources and writes the same outputs as the daemon.
    """
    resolved = resolve_file(config)
    log_to_stderr(resolved.run.log_level)
    reader = SourceReader(resolved, only, seconds)
    reader.stop_on_signals()
    written = 0
    with RecordingWriter(out) as writer:
        for _, raw in reader.messages():
            wanted = raw[: None if count is None else count - written]
            writer.write(wanted)
            writer.flush()
            written += len(wanted)
            if count is not None and written >= count:
                break
    click.echo(f"{written:,} messages recorded in {out}", err=True)
