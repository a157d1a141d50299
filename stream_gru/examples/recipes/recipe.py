"""Recipes: the systems of five tutorials, each a training configuration and a function that makes its recordings.

A recipe is a file of this folder, ``<name>.toml``: a training configuration like any other, with a table ``[recipe]``
that names the source of its recordings and the result of the tutorial, and tables ``best`` and ``quick`` with the
changes of these variants.  `stream_gru.examples.recipes.run` trains and evaluates one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import msgspec
from msgspec import Struct

from stream_gru.core.errors import ConfigError

RECIPES = ("mnist-gru", "mnist-functional", "mnist-rnn", "imdb-gru", "imdb-long", "vowels", "sine")


class RecipeTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table ``[recipe]``.

    ``data``      the module of this folder that makes the recordings
    ``options``   its options, see ``Options`` in that module
    ``tutorial``  the result that the tutorial reports
    """

    title: str
    data: str
    tutorial: str
    options: dict[str, Any] = {}


@dataclass(frozen=True)
class Variant:
    """A recipe with its variant applied: its own table, and the training configuration as a TOML document."""

    table: RecipeTable
    document: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A recipe as written."""

    name: str
    text: str

    def variant(self, *, best: bool = False, quick: bool = False) -> Variant:
        """Apply the tables ``best`` and ``quick``, each if asked for."""
        document = tomllib.loads(self.text)
        changes = {name: document.pop(name, {}) for name in ("best", "quick")}
        for name, wanted in (("best", best), ("quick", quick)):
            document = merged(document, changes[name]) if wanted else document
        table = msgspec.convert(document.pop("recipe"), RecipeTable)
        return Variant(table, document)

    @property
    def reads_data(self) -> bool:
        """Whether it reads a public data set; other recipes generate their recordings."""
        return self.variant().table.data in ("mnist", "imdb")

    @property
    def title(self) -> str:
        """Its title in one line."""
        return self.variant().table.title


def load_recipe(name: str) -> Recipe:
    """Read the recipe ``name``.  Raises ConfigError when there is none."""
    if name not in RECIPES:
        raise ConfigError(f"recipe: expected one of {', '.join(RECIPES)}, got {name!r}")
    return read_recipe(name, (resources.files(__package__) / f"{name}.toml").read_text("utf-8"))


def read_recipe(name: str, text: str) -> Recipe:
    """Parse a recipe; raises ValueError (of tomllib or msgspec) for invalid text."""
    recipe = Recipe(name, text)
    recipe.variant()
    return recipe


def merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Merge tables key by key; replace everything else, lists included."""
    result = dict(document)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
