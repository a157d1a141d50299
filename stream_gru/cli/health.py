"""``stream-gru health``: for the health check of a container."""

from __future__ import annotations

import click

from stream_gru.cli.remote import remote_at

_OK = 200


@click.command()
@click.option("--url", default="http://127.0.0.1:9723", show_default=True, help="Where the daemon listens.")
def health(url: str) -> int:
    """Ask a running daemon whether it is well: exit code 0 if so, else 1."""
    status, text = remote_at(url).ask("GET", "/-/healthy")
    click.echo(text)
    return 0 if status == _OK else 1
