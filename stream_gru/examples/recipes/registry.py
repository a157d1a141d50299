"""Recipes: the systems of five tutorials, each a configuration, a maker of recordings and nothing else.

A recipe is a file of this folder, ``<name>.toml``: a training configuration as any sensor has, with a table
``[recipe]`` that says where its recordings come from and what the tutorial reports, and tables ``best`` and ``quick``
with what these variants change.  `stream_gru.examples.recipes.run` carries one out.
"""

from __future__ import annotations

from importlib import resources

from stream_gru.core.errors import ConfigError
from stream_gru.examples.recipes.recipe import Recipe, read_recipe

RECIPES = ("mnist-gru", "mnist-functional", "mnist-rnn", "imdb-gru", "imdb-long", "vowels", "sine")


def load_recipe(name: str) -> Recipe:
    """Read a recipe.  Raises ConfigError when there is none of that name."""
    if name not in RECIPES:
        raise ConfigError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return read_recipe(name, (resources.files(__package__) / f"{name}.toml").read_text("utf-8"))
