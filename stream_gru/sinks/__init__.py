"""Sinks: where predictions go, one kind a file; the form of a row is an encoder's business.

To add one: a file with a class that fulfils `stream_gru.protocols.Sink`, its table in the configuration's schema, and a
branch in `build_sink`.
"""

from __future__ import annotations

from pathlib import Path

from stream_gru.config.live import FileSinkConfig, StdoutSinkConfig
from stream_gru.errors import ConfigError
from stream_gru.protocols import Sink
from stream_gru.sinks.encode_csv import CsvEncoder
from stream_gru.sinks.encode_json import JsonEncoder
from stream_gru.sinks.file import FileSink
from stream_gru.sinks.stdout import StdoutSink

ENCODERS: dict[str, type[JsonEncoder] | type[CsvEncoder]] = {"jsonl": JsonEncoder, "csv": CsvEncoder}


def build_sink(config: FileSinkConfig | StdoutSinkConfig) -> Sink:
    """Return the sink a configuration describes.  Opens nothing."""
    if isinstance(config, StdoutSinkConfig):
        return StdoutSink(ENCODERS[config.format]())
    return file_sink(Path(config.path), append=True)


def file_sink(path: Path, append: bool) -> FileSink:
    """A file whose format its name tells: ``.jsonl`` or ``.csv``, perhaps ``.gz``.  Raises ConfigError."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1]
    if kind not in ENCODERS:
        raise ConfigError(f"{path}: expected a name ending in .jsonl, .csv, .jsonl.gz or .csv.gz")
    return FileSink(path, ENCODERS[kind](), append=append)
