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
    """Check a configuration FILE completely, touching nothing else."""
    purposes = check_purpose(load_config(file))
    click.echo(f"{file}: ok ({', '.join(sorted(purposes)) or 'neither training nor running is configured'})")
