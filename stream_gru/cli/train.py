"""``stream-gru train``: train a model on recordings and write a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import msgspec

from stream_gru.config import Config, load_config, require_training
from stream_gru.connectors.catalog import CATALOG
from stream_gru.model.bundle import check_target
from stream_gru.model.optional_packages import require_training_extra
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
