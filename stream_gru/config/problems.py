"""A problem in a configuration file, and its message."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
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
