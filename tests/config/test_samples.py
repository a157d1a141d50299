"""The samples hold every key of the schema with its default; no change of them crashes the reader."""

import re
import tomllib
from collections.abc import Iterator
from inspect import get_annotations
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import NODEFAULT, inspect, to_builtins

from stream_gru.config import Config, check_purpose, parse_config, sample_config
from stream_gru.config.validate import bare
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import ConfigError

Purpose = Literal["train", "run"]
Key = tuple[str, str]

PURPOSES: tuple[Purpose, ...] = ("train", "run")
SAMPLES = {purpose: sample_config(purpose, CATALOG) for purpose in PURPOSES}
# Keys of the pump example, whose values are not the defaults.
OF_THE_EXAMPLE = {
    ("InputConfig", "stream"),
    ("InputConfig", "label"),
    ("ChannelConfig", "unit"),
    ("ChannelConfig", "categories"),
}
EMPTY: tuple[object, ...] = ("", None, [])


def table_types(kind: inspect.Type) -> list[inspect.StructType]:
    """Return the tables a value of this type may be: none, one, or one for each ``type``."""
    kind = bare(kind)
    if not isinstance(kind, inspect.StructType):
        return []
    found = map(inspect.type_info, CATALOG.tables(kind.cls))
    return [table for table in found if isinstance(table, inspect.StructType)]


def tables(text: str) -> Iterator[tuple[list[str], dict[str, object], set[str]]]:
    """Yield header, keys with values, and which of them are switched off, for each table of a sample."""
    for block in re.split(r"^(?=#?\[)", text, flags=re.MULTILINE)[1:]:
        header, _, body = block.partition("\n")
        off = set(re.findall(r"^#(\w+) = ", body, flags=re.MULTILINE))
        values = tomllib.loads(re.sub(r"^#(?=\w+ = )", "", body, flags=re.MULTILINE))
        yield header.strip("#[]").split("."), values, off


def owner(table: type, key: str) -> str:
    """Return the class that defines a key of a table: keys that many tables share are shown once."""
    return next(one.__name__ for one in table.__mro__ if key in get_annotations(one))


def keys(kind: inspect.Type, value: dict[str, object]) -> Iterator[tuple[Key, inspect.Field, object]]:
    """Yield (table class, key), field and value for the keys of a table of a sample, and of inline tables in it."""
    choices = table_types(kind)
    table = next(one for one in choices if one.tag == value.get("type"))
    for field in table.fields:
        if field.name in value:
            item = value[field.name]
            yield (owner(table.cls, field.name), field.name), field, item
            if isinstance(item, dict):
                yield from keys(field.type, item)


def table_at(header: list[str]) -> inspect.Type:
    """Return the type of the table that a header opens."""
    kind = inspect.type_info(Config)
    for name in header:
        fields = [field for table in table_types(kind) for field in table.fields]
        kind = bare(next(field.type for field in fields if field.name == name))
        kind = kind.item_type if isinstance(kind, inspect.ListType) else kind
    return kind


def sample_keys(purpose: Purpose) -> Iterator[tuple[Key, inspect.Field, object, bool]]:
    """Yield (table class, key), field, value and whether it is switched off, for every key of a sample."""
    for header, values, off in tables(SAMPLES[purpose]):
        for key, field, value in keys(table_at(header), values):
            yield key, field, value, key[1] in off


def schema_keys(kind: inspect.Type) -> Iterator[Key]:
    """Yield (table class, key) of every key below a type that has a plain value."""
    kind = bare(kind)
    if isinstance(kind, inspect.ListType):
        yield from schema_keys(kind.item_type)
    for table in table_types(kind):
        for field in table.fields:
            below = list(schema_keys(field.type))
            yield from below or [(owner(table.cls, field.name), field.name)]


def default(field: inspect.Field) -> object:
    """Return a field's default as TOML would give it; NODEFAULT for a required key."""
    if field.default_factory is not NODEFAULT:
        return to_builtins(field.default_factory())
    return field.default if field.default is NODEFAULT else to_builtins(field.default)


@pytest.mark.parametrize(("purpose", "serves"), [("train", "training"), ("run", "running")])
def test_a_sample_can_be_used_as_it_is(purpose: Purpose, serves: str) -> None:
    """Each sample passes every check and serves its purpose."""
    assert check_purpose(parse_config(SAMPLES[purpose], f"{purpose}.toml", CATALOG)) == (serves,)


def test_the_samples_hold_every_key() -> None:
    """Every key of the schema is in one of the two samples."""
    written = {key for purpose in PURPOSES for key, *_ in sample_keys(purpose)}
    assert set(schema_keys(inspect.type_info(Config))) - written == set()


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_samples_show_the_defaults(purpose: Purpose) -> None:
    """A key with a value shows its default; a key, or table, without one is switched off."""
    for key, field, value, off in sample_keys(purpose):
        if off:
            assert field.required or key in OF_THE_EXAMPLE or default(field) in EMPTY or value == default(field), key
        elif key not in OF_THE_EXAMPLE and not field.required:
            assert (key, value) == (key, default(field))


def test_a_sample_with_every_key_switched_on_is_read() -> None:
    """The values behind # are valid, too."""
    text = re.sub(r"^#(?=\w+ = |\[)", "", SAMPLES["train"], flags=re.MULTILINE)
    text += '[[channel]]\nname = "valve"\ncategories = 3\n'  # the embedding is of a channel with categories
    assert check_purpose(parse_config(text, "train.toml", CATALOG)) == ("training",)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_every_key_of_a_sample_is_explained(purpose: Purpose) -> None:
    """The line above the first occurrence of a key explains it."""
    seen = set()
    text = SAMPLES[purpose].splitlines()
    for before, line in pairwise(text):
        found = re.match(r"#?(\w+) = ", line)
        if found and found[1] not in seen and found[1] != "type":
            seen.add(found[1])
            assert re.match(r"# ?\w*", before), line
            assert before.endswith((".", ";")), before


@pytest.mark.parametrize("purpose", PURPOSES)
def test_samples_fit_a_terminal(purpose: Purpose) -> None:
    """No line of a sample is longer than 120 characters."""
    assert max(map(len, SAMPLES[purpose].splitlines())) <= 120


PROBLEM = re.compile(r"[^:]+:\d+(:\d+)?: .+")
LITERALS = st.one_of(
    st.sampled_from(["true", "nan", "-inf", "[]", "{}", "[[]]", "[{}]", "{ a = 1 }", '""', '"""\n"""', "2026-03-01"]),
    st.sampled_from(
        ["06:00:00", "2026-03-01T00:00:00Z", '"2026-03-01"', '"a:b:70000"', '["flow", "flow"]', "[0.9, 0.1]"]
    ),
    st.sampled_from(
        ['"replay"', '"windowed"', '"lstm"', '"simple_rnn"', '"stream"', '"x.csv"', "0xffffffffffffffffff"]
    ),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=8),
)
NAMES = st.one_of(
    st.sampled_from(sorted({key[1] for p in PURPOSES for key, *_ in sample_keys(p)})), st.text(max_size=8)
)


def changed_line(line: str, how: str, name: str, literal: str) -> str:
    """Return the line with another key, another value, twice, cut short, or switched on."""
    left, equals, right = line.partition(" = ")
    changes = {
        "name": f"{name}{equals}{right}",
        "value": f"{left}{equals}{literal}",
        "twice": f"{line}\n{line}",
        "header": f"[{name}]\n{line}",
        "cut": line[: len(line) // 2],
    }
    return changes.get(how, line.removeprefix("#"))


def read_config(text: str) -> Config | tuple[str, ...]:
    """Return the configuration, or the problems."""
    try:
        return parse_config(text, "sample.toml", CATALOG)
    except ConfigError as error:
        return error.problems


@given(
    st.sampled_from(PURPOSES),
    st.lists(
        st.tuples(
            st.integers(0, 999),
            st.sampled_from(["name", "value", "value", "twice", "header", "cut", "on"]),
            NAMES,
            LITERALS,
        ),
        min_size=1,
        max_size=4,
    ),
)
@example("run", [(0, "header", "\x85\u2028", "")])
def test_a_changed_sample_is_a_configuration_or_a_list_of_problems(
    purpose: Purpose, changes: list[tuple[int, str, str, str]]
) -> None:
    """Any changed sample gives a `Config`, or problems of one line with file and line."""
    lines = SAMPLES[purpose].splitlines()
    places = [place for place, line in enumerate(lines) if re.match(r"#?\[|#?\w+ = ", line)]
    for number, how, name, literal in changes:
        place = places[number % len(places)]
        lines[place] = changed_line(lines[place], how, name, literal)
    outcome = read_config("\n".join(lines))
    assert outcome
    for problem in outcome if isinstance(outcome, tuple) else ():
        assert PROBLEM.fullmatch(problem)
        assert problem.splitlines() == [problem]
