"""Relative paths of a configuration are relative to the folder of its file, wherever the process was started.

``$NAME`` and ``${NAME}`` stand for environment variables; one that is not set stays as it is written.
"""

from __future__ import annotations

import os
from pathlib import Path

from msgspec.structs import replace

from stream_gru.config.schema import Config, FileSinkConfig, ReplaySourceConfig


def resolve(config: Config, base: Path) -> Config:
    """Return the configuration with its paths joined to ``base``; absolute and empty ones stay.  Opens nothing."""
    data, run, source = config.data, config.run, config.source
    if data is not None:
        data = replace(data, files=[_joined(base, file) for file in data.files])
    if run is not None:
        run = replace(run, bundle=_joined(base, run.bundle))
    if isinstance(source, ReplaySourceConfig):
        source = replace(source, files=[_joined(base, file) for file in source.files])
    training = replace(config.training, tensorboard=_joined(base, config.training.tensorboard))
    sink = [
        replace(one, path=_joined(base, one.path)) if isinstance(one, FileSinkConfig) else one for one in config.sink
    ]
    return replace(config, data=data, run=run, source=source, training=training, sink=sink)


def _joined(base: Path, path: str) -> str:
    return str(base / os.path.expandvars(path)) if path else path
