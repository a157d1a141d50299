"""Relative paths of a configuration are relative to the folder of its file, wherever the process was started.

A secret's name without a folder is first looked for among the systemd credentials.  ``$NAME`` and ``${NAME}`` stand for
environment variables; one that is not set stays as it is written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

from msgspec.structs import asdict, replace

from stream_gru.config.connector import SinkTable, SourceTable
from stream_gru.config.run_schema import BrokerConfig
from stream_gru.config.train_schema import Config

_Connector = TypeVar("_Connector", SourceTable, SinkTable)


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
