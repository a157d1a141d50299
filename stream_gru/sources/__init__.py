"""Sources: where bytes come from, one kind a file.

To add one: a file with a class that fulfils `stream_gru.protocols.Source`, its table in the configuration's schema, and
a branch in `build_source`.
"""

from __future__ import annotations

from pathlib import Path

from stream_gru.config.schema import Format, InputConfig, ReplaySourceConfig, StdinSourceConfig
from stream_gru.errors import ConfigError
from stream_gru.protocols import Source
from stream_gru.sources.files import FileSource, file_format
from stream_gru.sources.stdin import StdinSource


def build_source(
    config: ReplaySourceConfig | StdinSourceConfig, input_config: InputConfig, batch_rows: int
) -> tuple[Source, str]:
    """Return the source a configuration describes and the format its bytes are in.  Opens nothing.

    Raises ConfigError when files of different formats are mixed.
    """
    if isinstance(config, StdinSourceConfig):
        return StdinSource(header=config.format == "csv"), config.format
    paths = [Path(name) for name in config.files]
    kind = common_format(paths, input_config.format)
    return FileSource(paths, kind, batch_rows), kind


def common_format(paths: list[Path], stated: Format) -> str:
    """The one format of all files: as stated, else by their names.  Raises ConfigError."""
    kinds = {file_format(path, stated) for path in paths}
    if len(kinds) != 1:
        raise ConfigError(f"files: expected files of one format, got {', '.join(sorted(kinds)) or 'no files'}")
    return kinds.pop()
