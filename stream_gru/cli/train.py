"""``stream-gru train`` and ``evaluate``: train a model, and score one on other recordings."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import msgspec

from stream_gru.cli.group import ENGINE
from stream_gru.config import Config, load_config, require_training
from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.plugins import require_training_extra
from stream_gru.model.bundle import Bundle, check_target, load_bundle
from stream_gru.training.evaluation.evaluate import Baselines
from stream_gru.training.evaluation.evaluate import evaluate as evaluate_bundle
from stream_gru.training.evaluation.scores import score_lines


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Write the bundle to this folder.")
@click.option("--resume", is_flag=True, help="Continue from the checkpoint of an interrupted training.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="N", help="Override training.seed.")
@click.option(
    "--epochs", type=click.IntRange(min=1), metavar="N", help="Override training.epochs and training.max_updates."
)
def train(config: Path, out: Path, resume: bool, seed: int | None, epochs: int | None) -> None:
    """Train the model that CONFIG describes and write a bundle.

    Checkpoints are kept beside the bundle, in the folder BUNDLE.work, until training ends.  Ctrl-C ends training early
    and writes the best weights so far; before the first validation it writes nothing.
    """
    settings = load_config(config, CATALOG)
    require_training(settings, str(config))
    settings = with_options(settings, seed, epochs)
    target = out.resolve()
    check_target(target)
    with require_training_extra():
        from stream_gru.training.progress import default_reporter
        from stream_gru.training.train import train as train_bundle
    work_dir = target.with_name(target.name + ".work")
    trained = train_bundle(
        settings, target, work_dir, default_reporter(), lambda text: click.echo(text, err=True), resume
    )
    for line in score_lines(trained.scores):
        click.echo(line)
    click.echo(f"\nwrote {out} (model {trained.bundle.manifest.model_id}); see {out / 'report.html'}", err=True)
    if trained.fitted.stopped == "interrupted":
        click.echo(f"interrupted; continue with the same command and --resume (checkpoint in {work_dir})", err=True)
    else:
        shutil.rmtree(work_dir, ignore_errors=True)


def with_options(settings: Config, seed: int | None, epochs: int | None) -> Config:
    """The configuration with the options of the command line applied."""
    changes = {} if seed is None else {"seed": seed}
    if epochs is not None:
        changes |= {"epochs": epochs, "max_updates": 0}
    return msgspec.structs.replace(settings, training=msgspec.structs.replace(settings.training, **changes))


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
