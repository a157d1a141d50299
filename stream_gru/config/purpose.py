"""What a configuration is good for: training, running, or both; and what it lacks for one of them."""

from __future__ import annotations

from typing import Literal

from stream_gru.config.train_schema import Config
from stream_gru.core.errors import ConfigError

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
