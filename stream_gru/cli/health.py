"""``stream-gru health``: the health check of a container."""

from __future__ import annotations

from pathlib import Path

import click

from stream_gru.cli.remote import Remote, remote_at, remote_of

_DEFAULT = "http://127.0.0.1:9723"
_OK = 200


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--url", help=f"Ask the daemon at this address instead of CONFIG.  [default: {_DEFAULT}]")
def health(config: Path | None, url: str | None) -> int:
    """Ask the running daemon whether it is healthy.

    The exit code is 0 when it is healthy, 1 when it is not or does not answer.
    """
    status, text = _remote(config, url).request("GET", "/-/healthy")
    click.echo(text)
    return 0 if status == _OK else 1


def _remote(config: Path | None, url: str | None) -> Remote:
    if config is None:
        return remote_at(_DEFAULT if url is None else url)
    if url is not None:
        raise click.UsageError("expected CONFIG or --url, not both")
    from stream_gru.config import load_config

    return remote_of(load_config(config), config)
