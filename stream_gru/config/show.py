"""The configuration as it counts: every key with its value, and nothing that is a secret."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Literal, TypeGuard

import msgspec

from stream_gru.config.problems import KeyPath, dotted
from stream_gru.config.train_schema import Config

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


def as_toml(data: Mapping[str, object]) -> str:
    """Tables of numbers, texts, booleans, lists and tables as TOML."""
    return "\n".join(_lines((), data)).strip() + "\n"


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


def _lines(path: KeyPath, table: Mapping[str, object]) -> Iterator[str]:
    """The values of a table, then the tables within it."""
    tables = {key: value for key, value in table.items() if isinstance(value, dict) or _is_tables(value)}
    for key, value in table.items():
        if key not in tables:
            yield f"{dotted((key,))} = {_value(value)}"
    for key, value in tables.items():
        name = (*path, key)
        for one in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{dotted(name)}]]" if isinstance(value, list) else f"[{dotted(name)}]"
            yield from _lines(name, one)


def _is_tables(value: object) -> TypeGuard[list[dict[str, object]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _value(value: object) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, too, but for this character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def sample_config(purpose: Literal["train", "run"]) -> str:
    """Return a TOML text with every key for that purpose, its default and one line on what it does."""
    return resources.files("stream_gru.config").joinpath(f"{purpose}.toml").read_text(encoding="utf-8")
