"""``stream-gru config`` and ``stream-gru check``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stream_gru.config import as_toml, check_purpose, load_config, sample_config
from stream_gru.config.show import effective


@click.group()
def config() -> None:
    """Print a full, commented sample configuration for training or for running, or show what a file comes to."""


@config.command()
def train() -> None:
    """Print a full, commented sample configuration for training."""
    click.echo(sample_config("train"), nl=False)


@config.command()
def run() -> None:
    """Print a full, commented sample configuration for running."""
    click.echo(sample_config("run"), nl=False)


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(file: Path, as_json: bool) -> None:
    """Print every key of a configuration FILE with the value that counts, defaults too; no secret is shown."""
    settings = effective(load_config(file))
    click.echo(json.dumps(settings, ensure_ascii=False) if as_json else as_toml(settings), nl=as_json)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check a configuration FILE completely, and the bundle and secrets it names where they are; connect to nothing."""
    settings = load_config(file)
    purposes = check_purpose(settings)
    told = ", ".join(sorted(purposes)) or "neither training nor running is configured"
    if "running" in purposes and settings.run is not None:
        if Path(settings.run.bundle).exists():
            from stream_gru.runtime.resolved_config import load_plan

            told += f", model {load_plan(file).bundle.manifest.model_id}"
        else:
            click.echo(f"{settings.run.bundle}: not there, so nothing that needs it was checked", err=True)
    click.echo(f"{file}: ok ({told})")
