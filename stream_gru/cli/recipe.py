"""``stream-gru recipe``: the systems of the tutorials, each trained, streamed and compared in one command."""

from __future__ import annotations

from pathlib import Path

import click

from stream_gru.examples.recipes.registry import RECIPES, load_recipe
from stream_gru.model.optional_packages import training_extra

NAME = click.Choice(RECIPES)


@click.group()
def recipe() -> None:
    """Recipes: systems of public tutorials, rebuilt on this product's parts."""


@recipe.command("list")
def list_recipes() -> None:
    """List the recipes."""
    for name in RECIPES:
        click.echo(f"{name:<18} {load_recipe(name).title}")


@recipe.command()
@click.argument("name", type=NAME)
def show(name: str) -> None:
    """Print a recipe as it is written: a training configuration, and what its variants change."""
    click.echo(load_recipe(name).text, nl=False)


@recipe.command()
@click.argument("name", type=NAME)
@click.option("--data", "place", type=click.Path(path_type=Path), help="A local .npz file, or its folder.")
@click.option("--quick", is_flag=True, help="Little data and few epochs: does it work, not how well.")
@click.option("--best/--as-tutorial", default=False, help="Our better settings, or the tutorial's own.  [as-tutorial]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write.  [NAME, NAME-best, NAME-quick]")
@click.option("--compare", is_flag=True, help="mnist-gru: unrolled or not, stateful or windowed, GRU, SimpleRNN, LSTM.")
def run(name: str, place: Path | None, quick: bool, best: bool, out: Path | None, compare: bool) -> None:
    """Make the recordings of recipe NAME, train, then answer the test part streamed and by Keras.

    Data: --data, else the folder STREAM_GRU_DATA, else Keras' own download; some recipes make their own.
    """
    chosen = load_recipe(name)
    kind = "-compare" if compare else "-best" if best else ""
    target = (out or Path(name + kind + ("-quick" if quick else ""))).resolve()
    if compare and name != "mnist-gru":
        raise click.UsageError("--compare goes with mnist-gru only")
    if place is not None and not chosen.reads_data:
        raise click.UsageError(f"--data: {name} makes its own recordings")
    with training_extra():
        from stream_gru.examples.recipes.compare import compare_variants
        from stream_gru.examples.recipes.run import run_recipe
        from stream_gru.training.progress import default_reporter
    variant = chosen.variant(best=best, quick=quick)
    if compare:
        lines = compare_variants(variant, target, place, tell)
    else:
        done = run_recipe(chosen, variant, target, place, default_reporter(), tell)
        lines = [*done.lines, f"report       {target / 'bundle' / 'report.html'}"]
    for line in lines:
        click.echo(line)


def tell(text: str) -> None:
    """What goes on, on standard error."""
    click.echo(text, err=True)
