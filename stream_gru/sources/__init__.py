"""Sources: where bytes come from, one kind a file.

To add one: a file with a class that fulfils `stream_gru.protocols.Source`, its table in the configuration's schema, and
a branch in `build_source`.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from stream_gru.config.kinds import Format
from stream_gru.config.live import ReplaySourceConfig, StdinSourceConfig
from stream_gru.config.schema import InputConfig
from stream_gru.errors import ConfigError
from stream_gru.protocols import Source
from stream_gru.sources.files import FileSource, expand, file_format, named_format
from stream_gru.sources.stdin import StdinSource


def build_source(
    config: ReplaySourceConfig | StdinSourceConfig, input_config: InputConfig, batch_rows: int
) -> tuple[Source, str]:
    """Return the source a configuration describes and the format its bytes are in.  Opens nothing.

    Folders are looked into only for a pattern whose own end does not tell a format, such as ``recordings/*``.

    Raises ConfigError when files of different formats are mixed, DataError when no file matches such a pattern.
    """
    if isinstance(config, StdinSourceConfig):
        return StdinSource(header=config.format == "csv"), config.format
    kind = common_format(_telling(config.files, input_config.format), input_config.format)
    return FileSource(config.files, kind, batch_rows), kind


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
