"""Sinks: where predictions go, one kind a file; the form of a row is an encoder's business.

To add one: a file with a class that fulfils `core.protocols.Sink`, its table in the configuration's schema, and a
branch in `build_sink`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stream_gru.config.run_schema import BrokerConfig, FileSinkConfig, InfluxSinkConfig, SinkConfig, StdoutSinkConfig
from stream_gru.connectors.sinks.encode_csv import CsvEncoder
from stream_gru.connectors.sinks.encode_json import JsonEncoder
from stream_gru.connectors.sinks.encode_line_protocol import LineEncoder
from stream_gru.connectors.sinks.file import Encoder, FileSink
from stream_gru.connectors.sinks.stdout import StdoutSink
from stream_gru.core.errors import ConfigError
from stream_gru.core.protocols import Sink
from stream_gru.model.manifest import Manifest

ENCODERS: dict[str, Callable[[], Encoder]] = {"jsonl": JsonEncoder, "csv": CsvEncoder, "line_protocol": LineEncoder}
_SUFFIXES = {"jsonl": "jsonl", "csv": "csv", "lp": "line_protocol"}


def build_sink(
    config: SinkConfig,
    name: str,
    *,
    broker: BrokerConfig | None = None,
    manifest: Manifest | None = None,
    immediate: bool = False,
) -> Sink:
    """Return the sink that a table describes, with its throttle.  Opens nothing.

    ``broker`` and ``manifest`` are for MQTT (the latter for what Home Assistant is told); ``immediate``: outputs may go
    to other machines before they are stored.
    """
    sink = _bare_sink(config, name, broker, manifest, immediate)
    if config.throttle == "none":
        return sink
    from stream_gru.connectors.sinks.throttle import Throttled

    return Throttled(sink, config.throttle, config.interval_s)


def _bare_sink(
    config: SinkConfig,
    name: str,
    broker: BrokerConfig | None,
    manifest: Manifest | None,
    immediate: bool,
) -> Sink:
    if isinstance(config, StdoutSinkConfig):
        return StdoutSink(ENCODERS[config.format]())
    if isinstance(config, FileSinkConfig):
        return file_sink(
            Path(config.path),
            append=True,
            rotate_bytes=config.rotate_bytes,
            rotate_s=config.rotate_s,
            keep=config.max_files,
        )
    if isinstance(config, InfluxSinkConfig):
        from stream_gru.connectors.sinks.influx import InfluxSink

        return InfluxSink(config, immediate=immediate)
    from stream_gru.connectors.sinks.mqtt import MqttSink

    if broker is None:
        raise ConfigError(f"sink {name}: expected a [[broker]]")
    return MqttSink(config, broker, name=name, manifest=manifest, immediate=immediate)


def file_sink(path: Path, append: bool, *, rotate_bytes: int = 0, rotate_s: float = 0.0, keep: int = 10) -> FileSink:
    """A file whose format its name tells: ``.jsonl``, ``.csv`` or ``.lp``, perhaps ``.gz``.  Raises ConfigError."""
    kind = _SUFFIXES.get(path.name.removesuffix(".gz").rpartition(".")[2])
    if kind is None or "." not in path.name.removesuffix(".gz"):
        raise ConfigError(f"{path}: expected a name ending in .jsonl, .csv or .lp, perhaps with .gz behind it")
    return FileSink(path, ENCODERS[kind](), append=append, rotate_bytes=rotate_bytes, rotate_s=rotate_s, keep=keep)
