"""Sources: where bytes come from, one kind a file.

To add one: a file with a class that fulfils `stream_gru.core.protocols.Source`, its table in the configuration
(`stream_gru.config.run_schema`), and a branch in `build_source`.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path

from stream_gru.config.field_types import Format
from stream_gru.config.run_schema import (
    BrokerConfig,
    MqttSourceConfig,
    ReplaySourceConfig,
    SerialSourceConfig,
    SourceConfig,
    StdinSourceConfig,
)
from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.sources.files import FileSource, expand, file_format, named_format
from stream_gru.connectors.sources.stdin import StdinSource
from stream_gru.core.errors import ConfigError
from stream_gru.core.protocols import Source


def build_source(
    config: SourceConfig,
    name: str,
    kind: str,
    *,
    broker: BrokerConfig | None = None,
    state_dir: str = "",
    batch_rows: int = 1024,
    alone: bool = True,
    bell: Callable[[], None] | None = None,
) -> Source:
    """Return the source that a table describes; ``kind`` is the format of its bytes.  Opens nothing.

    Ports, and any source beside others, are read by a thread of their own into a bounded queue, and ``bell`` is rung
    when something is in it.
    """
    if isinstance(config, MqttSourceConfig):
        from stream_gru.connectors.sources.mqtt import MqttSource

        if broker is None:
            raise ConfigError(f"source {name}: expected a [[broker]]")
        return MqttSource(config, broker, name=name, state_dir=state_dir, bell=bell)
    if isinstance(config, SerialSourceConfig):
        from stream_gru.connectors.sources.serial import SerialSource

        return _queued(SerialSource(config, name=name), config, name, bell, config.reconnect_max_delay_s)
    source: Source
    if isinstance(config, StdinSourceConfig):
        source = StdinSource(header=config.format == "csv" and not config.input.fields, name=name)
    else:
        source = FileSource(config.files, kind, batch_rows, name)
    return source if alone else _queued(source, config, name, bell, None)


def _queued(
    source: Source,
    config: SourceConfig,
    name: str,
    bell: Callable[[], None] | None,
    reconnect_max_delay_s: float | None,
) -> Source:
    """A thread and a queue for a source; without a longest pause it is not tried again."""
    from stream_gru.connectors.sources.threaded import Queued

    return Queued(
        source,
        name=name,
        queue_size=config.queue_size,
        queue_bytes=config.queue_bytes,
        reconnect_max_delay_s=reconnect_max_delay_s or 0.0,
        retry=reconnect_max_delay_s is not None,
        bell=bell,
    )


def replay_format(config: ReplaySourceConfig, input_config: InputConfig) -> str:
    """The format of recorded files.

    Folders are looked into only for a pattern whose own end does not tell a format, such as ``recordings/*``.

    Raises ConfigError when files of different formats are mixed, DataError when no file matches such a pattern.
    """
    return common_format(_telling(config.files, input_config.format), input_config.format)


def common_format(paths: list[Path], stated: Format) -> str:
    """The one format of all files: as stated, else by their names.  Raises ConfigError."""
    kinds = {file_format(path, stated) for path in paths}
    if len(kinds) != 1:
        raise ConfigError(f"files: expected files of one format, got {', '.join(sorted(kinds)) or 'no files'}")
    return kinds.pop()


def _telling(files: Sequence[str], stated: Format) -> list[Path]:
    """The names, where these tell the formats of all files; for a pattern that does not, the files that match it."""
    paths: list[Path] = []
    for name in files:
        unclear = stated == "auto" and glob.has_magic(name) and not named_format(Path(name))
        paths += expand([name]) if unclear else [Path(name)]
    return paths
