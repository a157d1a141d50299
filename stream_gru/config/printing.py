"""Configurations as text: commented samples written from the schema, and the configuration in effect.

A sample has every key with its meaning, and its default or an example.  A key whose default is empty, and a table that
is not needed, stand behind ``#``.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec
from msgspec import NODEFAULT, inspect

from stream_gru.config.catalog import Catalog
from stream_gru.config.connector import SinkTable, SourceTable
from stream_gru.config.train_schema import Config
from stream_gru.config.validate import bare, extra_of, range_words, struct_type, table_type
from stream_gru.core.errors import ConfigError

_WIDTH = 118
_TRAINING = ("input", "channel", "data", "split", "conditioning", "model", "training")
_HEADS = {
    "train": "Training: learn from recordings of pumps, write a bundle.  A step is one sample.",
    "run": "Running: read samples, forecast and classify each, write the predictions.  The bundle says how a record is "
    "read ([input], [[channel]], [conditioning]); a key of [input] or a column of a [[channel]] that is given here "
    "with another value than its default replaces the bundle's.",
}
_COMMON = (
    "Every key is here.  A key with a value shows its default, unless it belongs to the pump example.  A line that "
    'starts with "#key =" or "#[" is not used unless you take the # away.  Paths are relative to the folder of this '
    "file."
)


def sample_config(purpose: Literal["train", "run"], catalog: Catalog) -> str:
    """Return a TOML text with every key for that purpose."""
    lines = [*_comment(_HEADS[purpose]), "#", *_comment(_COMMON), *_comment(f"Check: stream-gru check {purpose}.toml")]
    for field in struct_type(Config).fields:
        if (field.name in _TRAINING) == (purpose == "train"):
            lines += _tables(field, (field.name,), catalog, off=False)
    return "\n".join(lines) + "\n"


def _tables(field: inspect.Field, path: tuple[str, ...], catalog: Catalog, *, off: bool) -> Iterator[str]:
    """The tables of a key, ``off``: behind #."""
    sample = extra_of(field.type).get("sample")
    kind = bare(field.type)
    if not isinstance(kind, inspect.ListType):
        table = table_type(kind)
        optional = field.default is None and sample is None
        if table is not None:
            yield from _table(f"[{'.'.join(path)}]", table, path, {}, catalog, off=off or optional)
        return
    table = table_type(kind.item_type)
    if table is None:
        return
    name = f"[[{'.'.join(path)}]]"
    if table.cls in (SourceTable, SinkTable):
        for number, one in enumerate(_connectors(table.cls, catalog)):
            yield from _table(name, one, path, {}, catalog, off=off or number > 0, shared=number == 0)
        return
    elements = sample if isinstance(sample, list) else []
    yield from _table(name, table, path, elements[0] if elements else {}, catalog, off=off or not elements)
    for element in elements[1:]:
        yield from ("", name, *(f"{key} = {_value(value)}" for key, value in element.items()))


def _connectors(base: type, catalog: Catalog) -> Iterator[inspect.StructType]:
    """All tables of sources or sinks, those of plugins last; a plugin that cannot be loaded is left out."""
    registry = catalog.sources if base is SourceTable else catalog.sinks
    for name in registry.names():
        try:
            yield struct_type(catalog.table(base, name))
        except ConfigError:
            continue


def _table(
    header: str,
    table: inspect.StructType,
    path: tuple[str, ...],
    given: Mapping[str, object],
    catalog: Catalog,
    *,
    off: bool,
    shared: bool = True,
) -> Iterator[str]:
    """A table with its keys, then the tables inside it; without the keys that all connectors have unless ``shared``."""
    mark = "#" if off else ""
    base = {SourceTable, SinkTable}.intersection(table.cls.__mro__)
    common = {name for one in base for name in one.__struct_fields__}
    yield ""
    yield from _comment(_first_paragraph(table.cls.__doc__))
    if base and not shared:
        yield from _comment("The keys of every such table, shown for the first, are not repeated.")
    yield mark + header
    if table.tag is not None and base:
        yield f"{mark}type = {_value(table.tag)}"
    fields = [field for field in table.fields if shared or field.name not in common or field.required]
    fields.sort(key=lambda field: (field.name in common, not field.required) if base else (False, False))
    for field in fields:
        if not _holds_tables(field.type):
            yield from _key(field, given, catalog, mark)
    for field in fields:
        if _holds_tables(field.type):
            inside = bool(base) or off
            yield from _tables(field, (*path, field.name), catalog, off=inside)


def _holds_tables(kind: inspect.Type) -> bool:
    kind = bare(kind)
    if isinstance(kind, inspect.ListType):
        return table_type(kind.item_type) is not None
    table = table_type(kind)
    return table is not None and not _is_inline(table)


def _is_inline(table: inspect.StructType) -> bool:
    """Whether a table is small enough for one line."""
    return all(isinstance(bare(field.type), inspect.FloatType) for field in table.fields)


def _key(field: inspect.Field, given: Mapping[str, object], catalog: Catalog, mark: str) -> Iterator[str]:
    """Comment and line of one key."""
    meta = _meta(field.type)
    yield from _comment(" ".join(filter(None, (str(meta.get("description", "")), _choices(field.type, meta, catalog)))))
    default = _default(field)
    examples = meta.get("examples")
    example = examples[0] if isinstance(examples, list) else default
    sample = {**extra_of(field.type), **({"sample": given[field.name]} if field.name in given else {})}.get("sample")
    if sample is not None:
        yield f"{mark}{field.name} = {_value(sample)}"
    elif field.required:
        yield f"{mark}{field.name} = {_value(example)}"
    elif default in ("", None) or default == []:
        yield f"#{field.name} = {_value(example)}"
    else:
        yield f"{mark}{field.name} = {_value(default)}"


def _choices(kind: inspect.Type, meta: Mapping[str, object], catalog: Catalog) -> str:
    """The values or the range of a key, as far as its description does not say them."""
    extra, items = extra_of(kind), bare(kind)
    if isinstance(items, inspect.ListType):
        each = _choices(items.item_type, meta, catalog)
        return f"Each: {each[:1].lower()}{each[1:]}" if each else ""
    if extra.get("registry"):
        words = [*map(_value, catalog.names(extra))]
    elif isinstance(literal := bare(kind), inspect.LiteralType):
        words = [*map(_value, literal.values)]
    else:
        return range_words(bare(kind))
    if all(word in str(meta.get("description", "")) for word in words):
        return ""
    return f"{', '.join(words[:-1])} or {words[-1]}."


def _meta(kind: inspect.Type) -> Mapping[str, object]:
    """What `Meta` says of a type in ``description`` and ``examples``."""
    if isinstance(kind, inspect.Metadata):
        return {**_meta(kind.type), **(kind.extra_json_schema or {})}
    return {}


def _default(field: inspect.Field) -> object:
    """The default as TOML would give it; None for a required key."""
    value = field.default_factory() if field.default_factory is not NODEFAULT else field.default
    return None if value is NODEFAULT else msgspec.to_builtins(value)


def _first_paragraph(text: str | None) -> str:
    return " ".join((text or "").split("\n\n")[0].replace("``", "").replace("`", "").split())


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False, break_long_words=False)]


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)


HIDDEN = "…"
_USER_AND_PASSWORD = re.compile(r"://[^/\s]*@")
_PARAMETER = re.compile(r"(?<=[?&])([^=&#]*)=([^&#]*)")
# What an address may say about where things go; anything else may let somebody in.
_HARMLESS = frozenset({"db", "bucket", "org", "orgID", "precision", "rp", "consistency"})
# No key of today: secrets stand in files, and their names are shown.
_SECRET_KEY = re.compile(r"(password|passphrase|token|secret|api_?key)(?!.*_file$)")


def effective(config: Config) -> dict[str, object]:
    """All tables and keys with their values, defaults too; a key without a value is absent, secrets are HIDDEN."""
    return {key: _shown(key, value) for key, value in msgspec.to_builtins(config).items() if value is not None}


def _shown(key: str, value: object) -> object:
    if isinstance(value, dict):
        return {name: _shown(name, item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_shown(key, item) for item in value]
    if not isinstance(value, str):
        return value
    if value and _SECRET_KEY.search(key):
        return HIDDEN
    return _PARAMETER.sub(_parameter, _USER_AND_PASSWORD.sub(f"://{HIDDEN}@", value)) if "://" in value else value


def _parameter(found: re.Match[str]) -> str:
    return found[0] if found[1] in _HARMLESS else f"{found[1]}={HIDDEN}"
