"""``stream-gru evaluate``: score a bundle on labelled recordings."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from stream_gru.cli.group import ENGINE
from stream_gru.connectors.dataset_reader import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.model.bundle import Bundle, load_bundle
from stream_gru.training.evaluation.evaluate import Baselines
from stream_gru.training.evaluation.evaluate import evaluate as evaluate_bundle
from stream_gru.training.evaluation.scores import score_lines


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True)
@ENGINE
@click.option(
    "--regime",
    type=click.Choice(["stateful", "windowed"]),
    help="Carry the state or reset it at each window, instead of the bundle's own regime.",
)
@click.option(
    "--window", type=click.IntRange(min=1), metavar="N", help="Use windows of N steps; needs --regime windowed."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    bundle: Path, files: tuple[str, ...], engine: str, regime: str | None, window: int | None, as_json: bool
) -> None:
    """Score BUNDLE on labelled recordings FILES.

    Streams the recordings sample by sample, scores every output, and compares the forecasts with persistence.
    """
    if window and regime != "windowed":
        raise click.UsageError("--window needs --regime windowed")
    model = load_bundle(bundle)
    if regime:
        model = with_regime(model, regime, window)
    batch = read_files(files, Fields.of(model.manifest.input, model.manifest.channels))
    scores, _ = evaluate_bundle(model, batch, Baselines(), engine)
    if as_json:
        click.echo(msgspec.json.encode(scores).decode())  # NaN becomes null
        return
    for line in score_lines(scores):
        click.echo(line)


def with_regime(bundle: Bundle, regime: str, window: int | None) -> Bundle:
    """The bundle with another regime than in training.  Raises click.UsageError."""
    steps = window or bundle.manifest.window
    if regime == "windowed" and not steps:
        raise click.UsageError("--regime windowed needs --window, since the bundle was trained stateful")
    return bundle.with_manifest(regime=regime, window=steps if regime == "windowed" else None, warm_up=0)
