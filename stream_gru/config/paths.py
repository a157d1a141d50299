"""Relative paths of a configuration are relative to the folder of its file, wherever the process was started.

A secret's name without a folder is first looked for among the credentials that systemd hands over.
``$NAME`` and ``${NAME}`` stand for environment variables; one that is not set stays as it is written.
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec.structs import replace

from stream_gru.config.run_schema import (
    BrokerConfig,
    FileSinkConfig,
    InfluxSinkConfig,
    ReplaySourceConfig,
    SerialSourceConfig,
    SinkConfig,
    SourceConfig,
)
from stream_gru.config.train_schema import Config


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
        source=[_source(base, one) for one in config.source],
        sink=[_sink(base, one) for one in config.sink],
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


def _source(base: Path, source: SourceConfig) -> SourceConfig:
    if isinstance(source, ReplaySourceConfig):
        return replace(source, files=[_joined(base, file) for file in source.files])
    if isinstance(source, SerialSourceConfig) and source.port.startswith("."):
        return replace(source, port=_joined(base, source.port))
    return source


def _sink(base: Path, sink: SinkConfig) -> SinkConfig:
    if isinstance(sink, FileSinkConfig):
        return replace(sink, path=_joined(base, sink.path))
    if isinstance(sink, InfluxSinkConfig):
        return replace(sink, token_file=_secret(base, sink.token_file))
    return sink


def _secret(base: Path, name: str) -> str:
    """The path of a secret: that of a systemd credential of this name, where there is one, else a file's."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and name and "/" not in name and (Path(folder) / name).is_file():
        return str(Path(folder) / name)
    return _joined(base, name)


def _joined(base: Path, path: str) -> str:
    return str(base / os.path.expandvars(path)) if path else path
