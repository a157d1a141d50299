"""Load a TOML file as a checked `Config`, or report all its problems at once.

bytes ──▶ text ──▶ tomllib ──▶ validate (form) ──▶ msgspec ──▶ rules (sense) ──▶ Config
                      └──────▶ lines ──────────▶ file:line: of each problem

Relative paths are relative to the folder of the file.  A secret's name without a folder is first looked up among the
systemd credentials.  ``$NAME`` and ``${NAME}`` are environment variables; an unset one is left as it is.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from msgspec.structs import asdict, replace

from stream_gru.config.catalog import Catalog
from stream_gru.config.connector import SinkTable, SourceTable
from stream_gru.config.problems import KeyPath, Problem, line_of, scan_lines
from stream_gru.config.rules import check_rules
from stream_gru.config.run_schema import BrokerConfig
from stream_gru.config.train_schema import Config
from stream_gru.config.validate import check_value, struct_type
from stream_gru.core.errors import ConfigError

_Connector = TypeVar("_Connector", SourceTable, SinkTable)
MAX_FILE_BYTES = 1024 * 1024
_PLACE = re.compile(r"(.*) \((?:at line (\d+), column (\d+)|at end of document)\)", re.DOTALL)
# Messages of tomllib, and clearer ones.
_HINTS = {
    "Cannot overwrite a value": "this key is defined twice",
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
    problems = [*check_value(struct_type(Config), data, (), catalog)]
    # Rules are not applied to tables that have an invalid form.
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
        assert isinstance(connector, base)  # noqa: S101 - the catalog returns subclasses of the base
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
        return raw.decode("utf-8-sig")  # Windows editors write a byte order mark
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
        raise ConfigError(f"{file_name}:1: expected lists and tables, got too many levels") from error
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


Purpose = Literal["training", "running"]

_ONE, _SOME = "a [{0}] table", "at least one [[{0}]] table"
_NEEDS: dict[Purpose, dict[str, str]] = {
    "training": {"channel": _SOME, "data": _ONE, "model": _ONE},
    "running": {"run": _ONE, "source": _SOME, "sink": _SOME},
}


def check_purpose(config: Config) -> tuple[Purpose, ...]:
    """Return the purposes that the configuration holds all tables for; maybe none."""
    return tuple(purpose for purpose in _NEEDS if not _missing(config, purpose))


def require_training(config: Config, file_name: str) -> None:
    """Raise ConfigError, with one problem for each missing table, unless the configuration can train."""
    _require(config, file_name, "training")


def require_running(config: Config, file_name: str) -> None:
    """Raise ConfigError, with one problem for each missing table, unless the configuration can run."""
    _require(config, file_name, "running")


def _require(config: Config, file_name: str, purpose: Purpose) -> None:
    needs = _NEEDS[purpose]
    problems = [
        f"{file_name}:1: {table}: expected {needs[table].format(table)} for {purpose}, got none"
        for table in _missing(config, purpose)
    ]
    if problems:
        raise ConfigError(*problems)


def _missing(config: Config, purpose: Purpose) -> list[str]:
    return [table for table in _NEEDS[purpose] if not getattr(config, table)]


def resolve_paths(config: Config, base: Path) -> Config:
    """Return the configuration with its paths joined to ``base``; absolute and empty ones stay.  Opens nothing."""
    data, run = config.data, config.run
    if data is not None:
        data = replace(data, files=[_joined(base, file) for file in data.files])
    if run is not None:
        run = replace(run, bundle=_joined(base, run.bundle), state_dir=_joined(base, run.state_dir))
    training = replace(config.training, tensorboard=_joined(base, config.training.tensorboard))
    dead_letter = replace(config.dead_letter, path=_joined(base, config.dead_letter.path))
    control = replace(config.control, token_file=_secret(base, config.control.token_file))
    return replace(
        config,
        data=data,
        run=run,
        training=training,
        control=control,
        dead_letter=dead_letter,
        broker=[_broker(base, one) for one in config.broker],
        source=[_connector(base, one) for one in config.source],
        sink=[_connector(base, one) for one in config.sink],
    )


def _broker(base: Path, broker: BrokerConfig) -> BrokerConfig:
    return replace(
        broker,
        user_file=_secret(base, broker.user_file),
        password_file=_secret(base, broker.password_file),
        ca_file=_joined(base, broker.ca_file),
        cert_file=_joined(base, broker.cert_file),
        key_file=_secret(base, broker.key_file),
    )


def _connector(base: Path, table: _Connector) -> _Connector:
    values = asdict(table)
    changed: dict[str, object] = {key: _secret(base, values[key]) for key in table.secret_keys}
    for key in table.path_keys:
        value = values[key]
        changed[key] = [_joined(base, one) for one in value] if isinstance(value, list) else _joined(base, value)
    return replace(table, **changed) if changed else table


def _secret(base: Path, name: str) -> str:
    """The path of a secret: that of a systemd credential of this name, where there is one, else a file's."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and name and "/" not in name and (Path(folder) / name).is_file():
        return str(Path(folder) / name)
    return _joined(base, name)


def _joined(base: Path, path: str) -> str:
    return str(base / os.path.expandvars(path)) if path else path
