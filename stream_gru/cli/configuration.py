"""``stream-gru config`` and ``stream-gru check``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from stream_gru.config import check_purpose, load_config, sample_config


@click.command()
@click.argument("purpose", type=click.Choice(["train", "run"]))
def config(purpose: Literal["train", "run"]) -> None:
    """Print a full, commented sample configuration for training or for running."""
    click.echo(sample_config(purpose), nl=False)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check a configuration FILE completely, and the bundle and secrets it names where they are; connect to nothing."""
    settings = load_config(file)
    purposes = check_purpose(settings)
    told = ", ".join(sorted(purposes)) or "neither training nor running is configured"
    if "running" in purposes and settings.run is not None:
        if Path(settings.run.bundle).exists():
            from stream_gru.gateway.plan import load_plan

            told += f", model {load_plan(file).bundle.manifest.model_id}"
        else:
            click.echo(f"{settings.run.bundle}: not there, so nothing that needs it was checked", err=True)
    click.echo(f"{file}: ok ({told})")
