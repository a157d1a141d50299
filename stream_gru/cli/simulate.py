"""``stream-gru simulate``: recordings made by seeded simulators."""

from __future__ import annotations

from pathlib import Path

import click

from stream_gru.cli.options import FiniteRange

# A leap year; more would not fit into memory.
_HOURS = FiniteRange(min=0, min_open=True, max=8784)


@click.group()
def simulate() -> None:
    """Write simulated recordings: the same seed gives the same bytes."""


@simulate.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--hours", type=_HOURS, default=6.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--pumps", type=click.IntRange(1, 1000), default=6, show_default=True)
@click.option("--first", type=click.IntRange(1, 1000), default=1, show_default=True, help="Number of the first pump.")
@click.option("--one-file", is_flag=True, help="All pumps in one file, as a gateway receives them.")
@click.option("--gzip", is_flag=True, help="Compress the files.")
def pump(out: Path, hours: float, seed: int, pumps: int, first: int, one_file: bool, gzip: bool) -> None:
    """Water pumps: flow, pressure, motor current, vibration, every second, with modes and slow faults."""
    from stream_gru.simulate.write import write_pumps

    for path in write_pumps(out, hours, seed, pumps=pumps, gzip=gzip, first=first, one_file=one_file):
        click.echo(path)


@simulate.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--hours", type=_HOURS, default=1.0, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--streams", type=click.IntRange(1, 1000), default=4, show_default=True)
@click.option("--gzip", is_flag=True, help="Compress the files.")
def sine(out: Path, hours: float, seed: int, streams: int, gzip: bool) -> None:
    """Noisy sines of different phase."""
    from stream_gru.simulate.write import write_sines

    for path in write_sines(out, hours, seed, streams=streams, gzip=gzip):
        click.echo(path)
