"""``stream-gru recipe``: train and compare the models of public tutorials."""

from __future__ import annotations

from pathlib import Path

import click

from stream_gru.cli.group import CommandGroup
from stream_gru.examples.recipes.recipe import RECIPES, load_recipe
from stream_gru.model.optional_packages import require_training_extra

_NAME = click.argument("name", metavar="NAME", type=click.Choice(RECIPES))


@click.group(cls=CommandGroup)
def recipe() -> None:
    """Train the models of public tutorials and compare results."""


@recipe.command("list")
def list_recipes() -> None:
    """List the recipes."""
    for name in RECIPES:
        click.echo(f"{name:<18} {load_recipe(name).title}")


@recipe.command()
@_NAME
def show(name: str) -> None:
    """Print the training configuration of recipe NAME.

    The tables [best] and [quick] hold the keys that these variants change.
    """
    click.echo(load_recipe(name).text, nl=False)


@recipe.command()
@_NAME
@click.option(
    "--data", "data_path", type=click.Path(path_type=Path), help="Read data from this .npz file or its folder."
)
@click.option("--quick", is_flag=True, help="Train with little data and few epochs, as a test.")
@click.option(
    "--best/--as-tutorial",
    default=False,
    help="Use improved settings, or those of the tutorial.  [default: as-tutorial]",
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write to this folder.  [default: NAME, NAME-best or NAME-quick]"
)
@click.option("--compare", is_flag=True, help="Compare cells, regimes and unrolling (mnist-gru only).")
def run(name: str, data_path: Path | None, quick: bool, best: bool, out: Path | None, compare: bool) -> None:
    """Train recipe NAME and test it, streamed and in Keras.

    The data come from --data, else from the folder STREAM_GRU_DATA, else from the download of Keras.  Some recipes
    generate their data.
    """
    chosen = load_recipe(name)
    kind = "-compare" if compare else "-best" if best else ""
    target = (out or Path(name + kind + ("-quick" if quick else ""))).resolve()
    if compare and name != "mnist-gru":
        raise click.UsageError("--compare needs the recipe mnist-gru")
    if data_path is not None and not chosen.reads_data:
        raise click.UsageError(f"--data: recipe {name} generates its data")
    with require_training_extra():
        from stream_gru.examples.recipes.compare import compare_variants
        from stream_gru.examples.recipes.run import run_recipe
        from stream_gru.training.progress import default_reporter
    variant = chosen.variant(best=best, quick=quick)
    if compare:
        lines = compare_variants(variant, target, data_path, _print_progress)
    else:
        done = run_recipe(chosen, variant, target, data_path, default_reporter(), _print_progress)
        lines = [*done.lines, f"report       {target / 'bundle' / 'report.html'}"]
    for line in lines:
        click.echo(line)


def _print_progress(text: str) -> None:
    """Print progress on standard error."""
    click.echo(text, err=True)
