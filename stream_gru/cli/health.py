"""``stream-gru health``: the health check of a container."""

from __future__ import annotations

from pathlib import Path

import click

from stream_gru.cli.remote import chosen_remote

_DEFAULT = "http://127.0.0.1:9723"
_OK = 200


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--url", help=f"Ask the daemon at this address instead of CONFIG.  [default: {_DEFAULT}]")
def health(config: Path | None, url: str | None) -> int:
    """Ask the running daemon whether it is healthy.

    The exit code is 0 when it is healthy, 1 when it is not or does not answer.
    """
    status, text = chosen_remote(config, url, _DEFAULT).request("GET", "/-/healthy")
    click.echo(text)
    return 0 if status == _OK else 1
