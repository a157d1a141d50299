"""One recipe: its text, and the configuration that a variant of it makes."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct


class Table(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table ``[recipe]``.

    ``data``     the module of this room that makes the recordings
    ``options``  what it is asked for; each such module says what it knows
    ``tutorial`` what the tutorial reports
    """

    title: str
    data: str
    tutorial: str
    options: dict[str, Any] = {}


@dataclass(frozen=True)
class Variant:
    """A recipe as it shall be run: its own table, and the training configuration as a TOML document."""

    table: Table
    document: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """A recipe as it is written."""

    name: str
    text: str

    def variant(self, *, best: bool = False, quick: bool = False) -> Variant:
        """Resolve the tables ``best`` and ``quick`` into the rest."""
        document = tomllib.loads(self.text)
        changes = {name: document.pop(name, {}) for name in ("best", "quick")}
        for name, wanted in (("best", best), ("quick", quick)):
            document = merged(document, changes[name]) if wanted else document
        table = msgspec.convert(document.pop("recipe"), Table)
        return Variant(table, document)

    @property
    def reads_data(self) -> bool:
        """Whether it reads a public data set, rather than making its recordings itself."""
        return self.variant().table.data in ("mnist", "imdb")

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return self.variant().table.title


def read_recipe(name: str, text: str) -> Recipe:
    """A recipe from its text; ValueError (of tomllib or msgspec) when it is none."""
    recipe = Recipe(name, text)
    recipe.variant()
    return recipe


def merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Tables key by key; everything else, lists too, is replaced."""
    result = dict(document)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
