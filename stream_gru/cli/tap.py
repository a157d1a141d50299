"""``stream-gru tap``: show the outputs of a running daemon."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path

import click

from stream_gru.cli.group import FiniteRange
from stream_gru.cli.remote import Remote, chosen_remote


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--url", help="Read from this address (http://HOST:PORT) instead of CONFIG.")
@click.option("--stream", metavar="NAME", help="Show only this stream.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N outputs.")
@click.option(
    "--wait",
    type=FiniteRange(min=0),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Wait S seconds for the daemon.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, also on a terminal.")
def tap(
    config: Path | None, url: str | None, stream: str | None, count: int | None, wait: float, as_json: bool
) -> None:
    """Show the outputs of the running daemon live.

    On a terminal they are a table, elsewhere JSON lines.  Ctrl-C ends the command with exit code 0; the end of the
    daemon ends it with exit code 1.
    """
    remote = chosen_remote(config, url)
    remote.wait_until_listening(wait)
    with closing(_first(remote.events(stream), count)) as events:
        try:
            if as_json or not sys.stdout.isatty():
                _print(events)
            else:
                _draw(events, remote)
        except KeyboardInterrupt:
            return


def _first(events: Iterator[tuple[str, str]], count: int | None) -> Generator[tuple[str, str]]:
    """The events up to output number ``count``."""
    outputs = 0
    for event, data in events:
        yield event, data
        outputs += not event
        if outputs == count:
            return


def _print(events: Iterator[tuple[str, str]]) -> None:
    for event, data in events:
        if not event:
            click.echo(data)
        elif event == "dropped":
            click.echo(
                f"stream-gru: outputs were dropped, since they arrive faster than they are read: {data}", err=True
            )


def _draw(events: Iterator[tuple[str, str]], remote: Remote) -> None:
    from stream_gru.cli.tap_view import TapView

    with TapView(str(remote)) as view:
        for event, data in events:
            view.on_event(event, data)
