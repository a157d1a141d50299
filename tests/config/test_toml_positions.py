"""The line scanner against tomllib, on generated texts in every form TOML allows."""

import json
import re
import tomllib
from collections.abc import Iterator
from typing import TypeGuard

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.config.problems import KeyPath, line_of, scan_lines

Tree = dict[str, object]

TRICKY = st.text(st.sampled_from("a-_.\"'[]{}#=,\\ \n\tä💧"), max_size=6)
KEYS = st.one_of(st.text("abc_-0", min_size=1, max_size=3), TRICKY)
LEAVES = st.one_of(st.just(0), TRICKY, st.booleans(), st.floats(0, 1))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)


def literal(text: str) -> str:
    """Return a basic string of TOML."""
    return json.dumps(text, ensure_ascii=False)


def key(name: str) -> str:
    """Return a key, in quotes where TOML requires them."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else literal(name)


def is_tables(value: object) -> TypeGuard[list[Tree] | Tree]:
    """Return whether a header can introduce the value."""
    some = value if isinstance(value, list) else [value]
    return bool(some) and all(isinstance(one, dict) for one in some)


class Writer:
    """Writes a tree as TOML in random forms; each integer it writes is unique."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.number = 70_000

    def chance(self) -> bool:
        """Return one of two choices."""
        return self.data.draw(st.booleans())

    def text(self, text: str) -> str:
        """Return a string in one of the four forms."""
        if self.chance():
            return literal(text)
        if "'" not in text and "\n" not in text and self.chance():
            return f"'{text}'"
        if "'''" not in text and not text.endswith("'") and self.chance():
            return f"'''\n{text}'''"
        return '"""\n' + text.replace("\\", "\\\\").replace('"""', '""\\"') + '"""'

    def value(self, value: object) -> str:
        """Return a value that stands after ``=``."""
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key(name)} = {self.value(item)}" for name, item in value.items()) + " }"
        if isinstance(value, list):
            gap = self.data.draw(st.sampled_from(["", " ", "\n  ", " # not ] the end\n\n"]))
            return f"[{gap}" + "".join(f"{self.value(item)}{gap},{gap}" for item in value) + "]"
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, float):
            return repr(value)
        self.number += 1
        return str(self.number)

    def table(self, tree: Tree, header: str) -> Iterator[str]:
        """Yield the lines of a table: its values first, then the tables below it."""
        below: dict[str, list[Tree] | Tree] = {}
        for name, value in tree.items():
            if is_tables(value) and self.chance():
                below[name] = value
            else:
                yield from self.pair(name, value)
        for name, one in below.items():
            path = f"{header}.{key(name)}" if header else key(name)
            for inner in one if isinstance(one, list) else [one]:
                yield f"[[ {path} ]]" if isinstance(one, list) else f"[{path}]  # a table"
                yield from self.table(inner, path)

    def pair(self, name: str, value: object) -> Iterator[str]:
        """Yield ``key = value``, or dotted keys for a table."""
        if isinstance(value, dict) and value and self.chance():
            for inner, item in value.items():
                yield f"{key(name)} . {key(inner)} = {self.value(item)}"
        else:
            yield f"{key(name)} = {self.value(value)}" + self.data.draw(st.sampled_from(["", " # [no]", "\n"]))


def paths(value: object, path: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    """Yield the path of everything in a parsed file, with its value."""
    inner: Iterator[tuple[str | int, object]] = iter(())
    if isinstance(value, dict):
        inner = iter(value.items())
    elif isinstance(value, list):
        inner = iter(enumerate(value))
    for part, item in inner:
        yield (*path, part), item
        yield from paths(item, (*path, part))


@given(st.dictionaries(KEYS, VALUES, max_size=4), st.data(), st.sampled_from(["\n", "\r\n"]))
def test_every_key_is_found_where_its_value_stands(tree: Tree, data: st.DataObject, newline: str) -> None:
    """The scanner finds the keys that tomllib finds, no others, each integer on the line of its digits."""
    text = newline.join("\n".join(Writer(data).table(tree, "")).split("\n"))
    parsed = dict(paths(tomllib.loads(text)))
    lines = scan_lines(text)
    assert lines.keys() == parsed.keys()
    for path, value in parsed.items():
        if isinstance(value, int) and value > 70_000:
            assert lines[path] == text[: text.index(str(value))].count("\n") + 1


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("a", "b"), 4),
        (("a",), 9),
        (("a", "x"), 10),
        (("list",), 12),
        (("list", 0), 12),
        (("list", 1), 14),
        (("list", 1, "deep"), 15),
        (("list", 1, "deep", 0, "y"), 16),
        (("a", "c", "absent"), 11),
        (("list", 1, "absent"), 14),
        (("absent",), 1),
    ],
)
def test_a_path_has_the_line_of_its_key_or_of_the_table_around_it(path: KeyPath, line: int) -> None:
    """A missing key has the line of its table's header, a table opened late that of its own header."""
    text = """# first
top = 1

[a.b] # [no]
text = '''
[list]
'''

[a]
x = { y = 1 }
c.d = "#"
[[list]]
x = 1
[["list"]]
[[list . deep]]
y = [1,
  2]
"""
    assert line_of(path, scan_lines(text)) == line


def test_a_long_text_is_scanned_in_one_go() -> None:
    """A string or a list of the largest size does not exhaust the stack."""
    text = 'a = """' + 'x\\"' * 150_000 + '"""\nb = [' + "1,\n" * 150_000 + "]\nc = 1\n"
    assert scan_lines(text)[("c",)] == 150_003
