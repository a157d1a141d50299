"""Problems in a configuration file: their messages, and the lines of its keys.

tomllib gives values without positions, so `scan_lines` scans the text again for its keys and skips the values.  The
text must be valid TOML: the scanner checks nothing.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time
from typing import NamedTuple

INT64 = range(-(2**63), 2**63)
_LONGEST_QUOTE = 60
# Part of an address that must not appear in a log.
_USER_AND_PASSWORD = re.compile(r"://[^/\s]*@")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
# In this order: a datetime is a date as well.
_KINDS = (
    (dict, "a table"),
    (list, "a list"),
    (datetime, "a date and time without quotes"),
    (date, "a date without quotes"),
    (time, "a time without quotes"),
)

KeyPath = tuple[str | int, ...]
"""Path to a value: keys of tables, and list indexes from 0 (messages count from 1)."""


class Problem(NamedTuple):
    """One problem: the key, the expected value and the one found."""

    path: KeyPath
    expected: str
    got: str

    @property
    def text(self) -> str:
        """The message without the file and line."""
        return f"{dotted(self.path)}: expected {self.expected}, got {self.got}"


def dotted(path: KeyPath) -> str:
    """Return the path as users write it: ``channel[2].name``, lists counted from 1."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part + 1}]"
        else:
            bare = len(part) <= _LONGEST_QUOTE and _BARE_KEY.fullmatch(part)
            text += ("." if text else "") + (part if bare else quoted(part))
    return text


def quoted(text: str) -> str:
    """Return the text in double quotes, on one line, without control characters, cut when long."""
    if len(text) > _LONGEST_QUOTE:
        text = text[:_LONGEST_QUOTE] + "…"
    literal = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in literal)


def shown(value: object) -> str:
    """Return a value of a TOML file as text for a message: short, on one line, without passwords."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(_USER_AND_PASSWORD.sub("://…@", value))
    if isinstance(value, int):
        return str(value) if value in INT64 else "an integer of more than 64 bits"
    return next((words for kind, words in _KINDS if isinstance(value, kind)), repr(value))


def listed(words: Iterable[object]) -> str:
    """Return ``"a", "b", "c"``."""
    return ", ".join(shown(word) for word in words)


def one_of(word: str, what: str, known: Sequence[str]) -> str:
    """Return the expectation for an unknown name: the nearest known one, else all of them."""
    near = difflib.get_close_matches(word[:128], known, n=1)
    if near:
        return f"one of the {what} (did you mean {quoted(near[0])}?)"
    return f"one of the {what} {listed(known)}"


_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_TEXT = re.compile(r"""[^\s.=\]"']+""")
_SCALAR = re.compile(r"[^,\]}#\n]*")
# A multi-line string may end in up to two quotes of its own before the three that close it.
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:[^"\\]|\\.)*"' r"|'[^']*'",
    re.DOTALL,
)


def scan_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, from 1, of every key, table header and list item of a valid TOML text.

    A table that only dotted keys or deeper headers imply has the line of the first of them.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def line_of(path: KeyPath, lines: Mapping[KeyPath, int]) -> int:
    """Return the line of the path, or of the nearest table around it, or 1."""
    around = (path[:end] for end in range(len(path), 0, -1))
    return next((lines[part] for part in around if part in lines), 1)


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.newlines = [match.start() for match in re.finditer("\n", text)]
        self.lines: dict[KeyPath, int] = {}
        self.tables: dict[KeyPath, int] = {}  # headers so far of each list of tables

    def document(self) -> None:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._skip(_BLANK)

    def _header(self) -> KeyPath:
        """Read ``[a.b]`` or ``[[a.b]]`` and return the path of the table it opens."""
        line = self._line()
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        *parents, name = self._key()
        self.at += brackets
        path: KeyPath = ()
        for part in parents:
            path = self._entered((*path, part))
            self.lines.setdefault(path, line)
        path = (*path, name)
        if brackets == 2:
            self.tables[path] = self.tables.get(path, 0) + 1
            self.lines.setdefault(path, line)
            path = self._entered(path)
        self.lines[path] = line
        return path

    def _entered(self, path: KeyPath) -> KeyPath:
        """Return the path of the last table if the path names a list of tables, else the path itself."""
        return (*path, self.tables[path] - 1) if path in self.tables else path

    def _pair(self, table: KeyPath) -> None:
        """Read ``key = value``."""
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.at += 1
        self._skip(_SPACE)
        self._value(path)

    def _key(self) -> list[str]:
        """Read a key, dotted or not, and the space around it."""
        parts = []
        while True:
            self._skip(_SPACE)
            parts.append(self._key_part())
            self._skip(_SPACE)
            if not self._take("."):
                return parts

    def _key_part(self) -> str:
        if self.text[self.at] not in "\"'":
            return self._skip(_KEY_TEXT)
        name: str = tomllib.loads(f"name = {self._skip(_STRING)}")["name"]
        return name

    def _value(self, path: KeyPath) -> None:
        start = self.text[self.at]
        if start == "[":
            self._list(path)
        elif start == "{":
            self._inline_table(path)
        else:
            self._skip(_STRING if start in "\"'" else _SCALAR)

    def _list(self, path: KeyPath) -> None:
        self.at += 1
        place = 0
        self._skip(_BLANK)
        while not self._take("]"):
            self.lines[(*path, place)] = self._line()
            self._value((*path, place))
            place += 1
            self._separator()

    def _inline_table(self, path: KeyPath) -> None:
        self.at += 1
        self._skip(_BLANK)
        while not self._take("}"):
            self._pair(path)
            self._separator()

    def _separator(self) -> None:
        self._skip(_BLANK)
        self._take(",")
        self._skip(_BLANK)

    def _take(self, char: str) -> bool:
        found = self.text.startswith(char, self.at)
        self.at += found
        return found

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise AssertionError(f"not valid TOML at line {self._line()}")
        self.at = match.end()
        return match.group()

    def _line(self) -> int:
        return bisect_left(self.newlines, self.at) + 1
