"""Validates the form of a file: walks over the types of the schema and the values of the file side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from functools import cache

from msgspec import inspect

from stream_gru.config.catalog import Catalog
from stream_gru.config.connector import SinkTable, SourceTable
from stream_gru.config.field_types import Table
from stream_gru.config.problems import INT64, KeyPath, Problem, dotted, listed, one_of, quoted, shown
from stream_gru.core.errors import ConfigError

# Bounds beyond any practical value are left out of the samples.
_HUGE, _LONG_TEXT = 1_000_000_000, 1024
_Number = inspect.IntType | inspect.FloatType


def check_value(kind: inspect.Type, value: object, path: KeyPath, catalog: Catalog) -> Iterator[Problem]:
    """Yield every problem in a value and below it."""
    match bare(kind):
        case inspect.StructType(cls=table) if isinstance(value, dict) and table in (SourceTable, SinkTable):
            yield from _check_connector(table, value, path, catalog)
        case inspect.StructType() as table if isinstance(value, dict):
            yield from _check_table(table, value, path, catalog)
        case inspect.ListType() as items if isinstance(value, list):
            for place, item in enumerate(value):
                yield from check_value(items.item_type, item, (*path, place), catalog)
        case _ if (extra := extra_of(kind)).get("registry") and isinstance(value, str):
            yield from _check_name(extra, value, path, catalog)
        case _ if not _fits(bare(kind), value):
            yield Problem(path, _expected(kind, value, path), shown(value))


@cache
def struct_type(table: type[Table]) -> inspect.StructType:
    """The fields of a table with their types; made once for each table, as it takes milliseconds."""
    found = inspect.type_info(table)
    assert isinstance(found, inspect.StructType)  # noqa: S101 - a table is a struct
    return found


def bare(kind: inspect.Type) -> inspect.Type:
    """Return the type without None, which TOML has not, and without its description."""
    if isinstance(kind, inspect.Metadata):
        return bare(kind.type)
    if isinstance(kind, inspect.UnionType):
        some = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        return bare(some[0]) if len(some) == 1 else inspect.UnionType(tuple(some))
    return kind


def table_type(kind: inspect.Type) -> inspect.StructType | None:
    """Return the table that a value of this type is, if any."""
    kind = bare(kind)
    return kind if isinstance(kind, inspect.StructType) else None


def _check_table(
    table: inspect.StructType, value: Mapping[str, object], path: KeyPath, catalog: Catalog
) -> Iterator[Problem]:
    fields = {field.encode_name: field for field in table.fields}
    known = [table.tag_field, *fields] if table.tag_field else [*fields]
    for key, item in value.items():
        if key in fields:
            yield from check_value(fields[key].type, item, (*path, key), catalog)
        elif key not in known:
            yield Problem((*path, key), one_of(key, "known keys", known), quoted(key))
    for key, field in fields.items():
        if field.required and key not in value:
            yield Problem((*path, key), _expected(field.type, None, (*path, key)), "none")


def _check_connector(
    base: type[Table], value: Mapping[str, object], path: KeyPath, catalog: Catalog
) -> Iterator[Problem]:
    """Check a table of a source or sink, whose ``type`` says which table it is."""
    registry = catalog.sources if issubclass(base, SourceTable) else catalog.sinks
    tag = value.get("type")
    if not isinstance(tag, str) or tag not in registry:
        got = shown(tag) if "type" in value else "none"
        yield Problem((*path, "type"), f"one of {listed(sorted(registry.names()))}", got)
        return
    try:
        table = struct_type(catalog.table(base, tag))
    except ConfigError as error:
        yield Problem((*path, "type"), "a type that can be loaded", f"{shown(tag)}: {error}")
    else:
        yield from _check_table(table, value, path, catalog)


def _check_name(extra: Mapping[str, object], value: str, path: KeyPath, catalog: Catalog) -> Iterator[Problem]:
    """Check the name of an engine or a decoder: ours, those that fit here, or any of a plugin."""
    if value not in catalog.names(extra, plugins=False) and value not in (names := catalog.names(extra)):
        yield Problem(path, f"one of {listed(names)}", shown(value))


def extra_of(kind: inspect.Type) -> Mapping[str, object]:
    """What `Meta(extra=)` says of a type."""
    if isinstance(kind, inspect.Metadata):
        return {**extra_of(kind.type), **(kind.extra or {})}
    if isinstance(kind, inspect.UnionType):  # a key that may be absent
        return {key: value for one in kind.types for key, value in extra_of(one).items()}
    return {}


def _fits(kind: inspect.Type, value: object) -> bool:
    match kind:
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and _in_range(kind, value)
        case inspect.FloatType():
            return isinstance(value, int | float) and _in_range(kind, value)
        case inspect.StrType():
            return isinstance(value, str) and _has_form(kind, value)
        case inspect.LiteralType():
            return type(value) in (str, int) and value in kind.values
    return False


def _in_range(kind: _Number, value: float) -> bool:
    if isinstance(value, bool) or (value not in INT64 if isinstance(value, int) else not math.isfinite(value)):
        return False
    return (
        (kind.gt is None or value > kind.gt)
        and (kind.ge is None or value >= kind.ge)
        and (kind.lt is None or value < kind.lt)
        and (kind.le is None or value <= kind.le)
    )


def _has_form(kind: inspect.StrType, value: str) -> bool:
    if len(value) < (kind.min_length or 0) or (kind.max_length is not None and len(value) > kind.max_length):
        return False
    return kind.pattern is None or re.fullmatch(kind.pattern, value) is not None


def _expected(kind: inspect.Type, value: object, path: KeyPath) -> str:
    if expected := extra_of(kind).get("expected"):
        return str(expected)
    kind = bare(kind)
    if table_type(kind):
        return f"a table, written {_header(path, in_list=isinstance(path[-1], int))}"
    match kind:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "an integer" + _range(kind)
        case inspect.FloatType():
            finite = isinstance(value, float) and not math.isfinite(value)
            return ("a finite number" if finite else "a number") + _range(kind)
        case inspect.StrType():
            return _length(kind)
        case inspect.LiteralType():
            return f"one of {listed(kind.values)}"
        case inspect.ListType():
            return _items(kind, path)
    raise TypeError(f"the schema has a type without words: {kind}")


def _range(kind: _Number) -> str:
    bounds = (("above", kind.gt), ("at least", kind.ge), ("below", kind.lt), ("at most", kind.le))
    words = " and ".join(f"{word} {bound}" for word, bound in bounds if bound is not None)
    return (" of " if words.startswith("at ") else " ") + words if words else ""


def _length(kind: inspect.StrType) -> str:
    if kind.max_length is None:
        return "a text in quotes"
    if kind.min_length == kind.max_length == 1:
        return "one character in quotes"
    return f"a text of {kind.min_length or 0} to {kind.max_length} characters in quotes"


def _items(kind: inspect.ListType, path: KeyPath) -> str:
    if table_type(kind.item_type):
        return f"tables, each written {_header(path, in_list=True)}"
    item = bare(kind.item_type)
    if isinstance(item, inspect.LiteralType):
        return f"a list of any of {listed(item.values)}"
    return "a list of texts" if isinstance(item, inspect.StrType) else "a list of numbers"


def _header(path: KeyPath, in_list: bool) -> str:
    name = dotted(tuple(part for part in path if isinstance(part, str)))
    return f"[[{name}]]" if in_list else f"[{name}]"


def range_words(kind: inspect.Type) -> str:
    """The range of a number or the length of a short text as a sentence; empty for none that matters."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            low = f"above {kind.gt:.12g}" if kind.gt is not None else f"{kind.ge:.12g}" if kind.ge is not None else ""
            if kind.lt is not None:
                words = f"{low} and below {kind.lt:.12g}" if kind.gt is not None else f"{low} to below {kind.lt:.12g}"
            elif kind.le is not None and (kind.ge is not None or kind.le < _HUGE):
                words = f"{low} to {kind.le:.12g}" if kind.ge is not None else f"{low}, at most {kind.le:.12g}"
            else:
                words = low + (" or more" if kind.ge is not None else "")
            return f"{words[:1].upper()}{words[1:]}." if words else ""
        case inspect.StrType(max_length=int() as most) if kind.pattern is None and most < _LONG_TEXT:
            return f"{kind.min_length or 0} to {most} characters."
    return ""
