"""A TOML file in, a checked `Config` out, or every mistake at once.

bytes ──▶ text ──▶ tomllib ──▶ validate (form) ──▶ msgspec ──▶ rules (sense) ──▶ Config
                      └──────▶ lines ──────────▶ file:line: of each problem
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import inspect
from msgspec.structs import replace

from stream_gru.config.catalog import Catalog
from stream_gru.config.connector import SinkTable, SourceTable
from stream_gru.config.paths import resolve_paths
from stream_gru.config.problems import KeyPath, Problem
from stream_gru.config.rules import check_rules
from stream_gru.config.toml_positions import line_of, scan_lines
from stream_gru.config.train_schema import Config
from stream_gru.config.validate import check_value
from stream_gru.core.errors import ConfigError

_Connector = TypeVar("_Connector", SourceTable, SinkTable)
MAX_FILE_BYTES = 1024 * 1024
_PLACE = re.compile(r"(.*) \((?:at line (\d+), column (\d+)|at end of document)\)", re.DOTALL)
# What tomllib says, and what the writer of the file can do about it.
_HINTS = {
    "Cannot overwrite a value": "this key stands here a second time",
    "Unescaped '\\' in a string": "a backslash in double quotes: write / or use single quotes",
}


def load_config(path: Path, catalog: Catalog) -> Config:
    """Read and check a file; relative paths in it become relative to its folder.

    Raises: ConfigError with all problems, in the order of their lines.
    """
    return resolve_paths(parse_config(_read(path), str(path), catalog), path.parent)


def parse_config(text: str, file_name: str, catalog: Catalog) -> Config:
    """Check a text; ``file_name`` is what the problems call it.  Paths in it are left as they are.

    Raises: ConfigError with all problems, in the order of their lines.
    """
    data, lines = _parse(text, file_name)
    problems = [*check_value(inspect.type_info(Config), data, (), catalog)]
    # A table with a mistake of form has no meaning yet; the rules look at the others.
    broken = {str(problem.path[0]) for problem in problems}
    config = _convert({key: data[key] for key in data if key not in broken}, catalog)
    problems += check_rules(config, lines, broken)
    if problems:
        raise ConfigError(*_lines(problems, lines, file_name))
    return config


def _convert(data: Mapping[str, object], catalog: Catalog) -> Config:
    """The configuration; each source and sink becomes a table of its own type."""
    config = msgspec.convert({key: value for key, value in data.items() if key not in ("source", "sink")}, Config)
    return replace(
        config,
        source=_connectors(data.get("source"), SourceTable, catalog),
        sink=_connectors(data.get("sink"), SinkTable, catalog),
    )


def _connectors(tables: object, base: type[_Connector], catalog: Catalog) -> list[_Connector]:
    found = []
    for table in tables if isinstance(tables, list) else []:
        connector = msgspec.convert(table, catalog.table(base, table["type"]))
        assert isinstance(connector, base)  # noqa: S101 - the catalog gives subclasses of the base
        found.append(connector)
    return found


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"{path}:1: expected a readable file, got: {reason}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}:1: expected at most {MAX_FILE_BYTES} bytes, got more")
    try:
        return raw.decode("utf-8-sig")  # editors on Windows write the mark
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        got = f"byte 0x{error.object[error.start]:02x}"
        raise ConfigError(f"{path}:{line}: expected UTF-8 text, got {got}") from error


def _parse(text: str, file_name: str) -> tuple[dict[str, object], dict[KeyPath, int]]:
    try:
        return tomllib.loads(text), scan_lines(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file_name}:{_syntax(str(error), text)}") from error
    except RecursionError as error:
        raise ConfigError(f"{file_name}:1: expected lists and tables, got too many inside each other") from error
    except ValueError as error:  # Python refuses to read integers of thousands of digits
        raise ConfigError(f"{file_name}:1: expected integers of 64 bits, got one of thousands of digits") from error


def _syntax(message: str, text: str) -> str:
    """Return ``line:column: what`` for a message of tomllib."""
    found = _PLACE.fullmatch(message)
    what, line, column = found.groups() if found else (message, None, None)
    if line is None:
        written = text.rstrip()
        line, column = written.count("\n") + 1, len(written) - written.rfind("\n")
    return f"{line}:{column}: not valid TOML: {_HINTS.get(what, what)}"


def _lines(problems: Iterable[Problem], lines: Mapping[KeyPath, int], file_name: str) -> list[str]:
    """A line of each problem, in the order of the file."""
    placed = sorted(((line_of(problem.path, lines), problem.text) for problem in problems), key=lambda one: one[0])
    return [f"{file_name}:{line}: {text}" for line, text in placed]
