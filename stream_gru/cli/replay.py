"""``stream-gru replay``: recorded files through a bundle, by the same code as live data."""

from __future__ import annotations

from pathlib import Path

import click

from stream_gru.bundle import load_bundle
from stream_gru.cli.building import ENGINE_CHOICE, build_pipeline, build_replay, run_daemon, stop_on_signals
from stream_gru.cli.options import FiniteRange
from stream_gru.decoders.fields import Fields
from stream_gru.errors import DataError
from stream_gru.recordings import shared_stream
from stream_gru.sinks import ENCODERS, file_sink
from stream_gru.sinks.stdout import StdoutSink
from stream_gru.sources.files import expand


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write to this file (.jsonl, .csv, also .gz).")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "csv"]),
    default="jsonl",
    envvar="STREAM_GRU_REPLAY_FORMAT",
    help="Form on standard output.",
)
@click.option("--speed", type=FiniteRange(min=0, min_open=True), help="A multiple of the recording's own speed.")
@click.option("--fast", is_flag=True, help="As fast as possible (the default).")
@click.option("--engine", type=ENGINE_CHOICE, default="auto", show_default=True)
@click.option("--level", type=FiniteRange(0, 1, min_open=True, max_open=True), default=0.9, show_default=True)
@click.option("--batch-rows", type=click.IntRange(1, 1_000_000), default=1024, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print no summary.")
def replay(
    bundle: Path,
    files: tuple[str, ...],
    out: Path | None,
    form: str,
    speed: float | None,
    fast: bool,
    engine: str,
    level: float,
    batch_rows: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run recorded FILES (CSV, JSON lines, Parquet; patterns too) through BUNDLE."""
    if fast and speed:
        raise click.UsageError("--fast and --speed exclude each other")
    model = load_bundle(bundle)
    paths = expand(files)
    sink = StdoutSink(ENCODERS[form]()) if out is None else file_sink(out, append=False)
    pipeline, metrics = build_pipeline(model, engine, level, "replay")
    fields = Fields.of(model.manifest.input, model.manifest.channels)
    for line in shared_stream(paths, fields):
        click.echo(line, err=True)
    daemon = build_replay(paths, fields, pipeline, {"output": sink}, metrics, batch_rows=batch_rows, speed=speed or 0.0)
    stop_on_signals(daemon)
    run_daemon(daemon, pipeline, as_json=as_json, quiet=quiet)
    if not daemon.summary.applied and not daemon.stopped:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(daemon.summary.dropped.items()))
        raise DataError(f"{', '.join(files)}: no row was applied: {reasons or 'there is none'}")
