"""``stream-gru config`` and ``stream-gru check``: print and check configurations."""

from __future__ import annotations

import json
from pathlib import Path

import click
import tomli_w

from stream_gru.cli.group import CommandGroup
from stream_gru.config import check_purpose, load_config, sample_config
from stream_gru.config.printing import effective
from stream_gru.connectors.registry import CATALOG


@click.group(cls=CommandGroup)
def config() -> None:
    """Print a sample configuration, or all keys of a FILE."""


@config.command()
def train() -> None:
    """Print a sample configuration for training, with comments."""
    click.echo(sample_config("train", CATALOG), nl=False)


@config.command()
def run() -> None:
    """Print a sample configuration for a daemon, with comments."""
    click.echo(sample_config("run", CATALOG), nl=False)


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(file: Path, as_json: bool) -> None:
    """Print all keys of FILE with their values, defaults included.

    Secrets are not printed.
    """
    settings = effective(load_config(file, CATALOG))
    click.echo(json.dumps(settings, ensure_ascii=False) if as_json else tomli_w.dumps(settings), nl=as_json)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check a configuration FILE without connecting to anything.

    Also checks the bundle and the secrets that FILE names, where they exist on this machine.
    """
    settings = load_config(file, CATALOG)
    for line in CATALOG.warnings():
        click.echo(line, err=True)
    purposes = check_purpose(settings)
    facts = ", ".join(sorted(purposes)) or "neither for training nor for running"
    if "running" in purposes and settings.run is not None:
        if Path(settings.run.bundle).exists():
            from stream_gru.runtime.resolved_config import resolve_file

            facts += f", model {resolve_file(file).bundle.manifest.model_id}"
        else:
            click.echo(f"{settings.run.bundle}: no such bundle; the keys that depend on it were not checked", err=True)
    for plugin in CATALOG.used_plugins(settings):
        facts += f", {plugin.kind} {plugin.name} of {plugin.origin}"
    click.echo(f"{file}: ok ({facts})")
