"""What a configuration stores, and which delivery guarantees it cannot give."""

from __future__ import annotations

from collections.abc import Iterator

from stream_gru.config.run_schema import (
    InfluxSinkConfig,
    MqttSinkConfig,
    MqttSourceConfig,
    SerialSourceConfig,
    StdinSourceConfig,
    StdoutSinkConfig,
)
from stream_gru.runtime.resolved_config import ResolvedConfig, SourceSpec
from stream_gru.runtime.wiring import build_rate_limit

_SERIAL_COMMIT_S = 0.1


def delivery_warnings(resolved: ResolvedConfig) -> Iterator[str]:
    """What a configuration promises less than exactly once, a sentence each."""
    run = resolved.run
    if not run.state_dir and resolved.live:
        yield "run.state_dir is not set: states and outputs that wait are lost with the process"
    for source in resolved.sources:
        yield from _source_warnings(source)
    if build_rate_limit(resolved) is not None:
        yield "limits: how much came lately is not stored: after a kill other samples may be dropped than without it"
    for sink in resolved.sinks:
        config = sink.config
        if isinstance(config, StdoutSinkConfig):
            yield f"sink {sink.name}: what went to standard output is not taken back: a kill repeats up to one commit"
        if isinstance(config, MqttSinkConfig | InfluxSinkConfig) and config.when_full == "drop_oldest":
            yield f'sink {sink.name}: when_full = "drop_oldest": outputs are lost while the other side is away for long'
        if isinstance(config, MqttSinkConfig) and config.qos == 0:
            yield f"sink {sink.name}: qos = 0: outputs under way are lost with a connection"


def _source_warnings(source: SourceSpec) -> Iterator[str]:
    name, config, broker = source.name, source.config, source.broker
    if source.live and (not source.fields.input.time or source.format == "number"):
        yield f"source {name}: records carry no time: one that comes again after a kill gets that of its new arrival"
    if isinstance(config, SerialSourceConfig):
        yield f"source {name}: a serial port repeats nothing: what is sent while nobody reads is lost (at most once)"
    if isinstance(config, MqttSourceConfig) and config.qos == 0:
        yield f"source {name}: qos = 0: messages are lost while the daemon or the connection is away (at most once)"
    if isinstance(config, MqttSourceConfig) and getattr(broker, "session_expiry_s", 1) == 0:
        yield f"source {name}: session_expiry_s = 0: the broker keeps nothing while the connection is away"
    if isinstance(config, StdinSourceConfig):
        yield f"source {name}: a pipe repeats nothing: a restart goes on only where the same input is fed again"
