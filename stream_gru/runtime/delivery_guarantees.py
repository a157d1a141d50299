"""What a configuration stores, and which delivery guarantees it cannot give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from stream_gru.config.run_schema import (
    InfluxSinkConfig,
    MqttSinkConfig,
    MqttSourceConfig,
    SerialSourceConfig,
    StdinSourceConfig,
    StdoutSinkConfig,
)
from stream_gru.core.protocols import Sink, Stateful
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer, Policy
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.control.commands import PauseFilter
from stream_gru.runtime.daemon import Input
from stream_gru.runtime.ingest.channel_join import Assembler
from stream_gru.runtime.resolved_config import ResolvedConfig, SourceSpec
from stream_gru.runtime.wiring import build_rate

_SERIAL_COMMIT_S = 0.1


def policy(resolved: ResolvedConfig) -> Policy:
    """The policies of the checkpoint."""
    run = resolved.run
    return Policy(
        max_streams=run.max_streams,
        evict=run.max_streams_policy == "evict",
        max_stored=run.max_stored_streams,
        refuse_other_model=run.on_model_change == "reject",
    )


def commit_interval_s(resolved: ResolvedConfig) -> float:
    """How often to commit: with a serial port, which repeats nothing, soon."""
    serial = any(isinstance(one.config, SerialSourceConfig) for one in resolved.sources)
    return min(resolved.run.commit_interval_s, _SERIAL_COMMIT_S) if serial else resolved.run.commit_interval_s


def build_store(resolved: ResolvedConfig) -> Store | None:
    """The store; None without ``run.state_dir``."""
    return Store(Path(resolved.run.state_dir)) if resolved.run.state_dir else None


def part_name(part: str, owner: str) -> str:
    """Under which name the store has what a part of a source or sink remembers."""
    return f"{part}:{owner}"


def assembly_part(resolved: ResolvedConfig) -> str:
    """The same of the assembler: what it holds is of these channels, in this order."""
    return part_name("assembly", ",".join(channel.name for channel in resolved.bundle.manifest.channels))


def register_stateful(
    keeper: Checkpointer,
    resolved: ResolvedConfig,
    inputs: Mapping[str, Input],
    sinks: Mapping[str, Sink],
    assembler: Assembler | None,
    gate: PauseFilter,
) -> None:
    """Tell the keeper who remembers what."""
    parts: dict[str, Stateful] = {}
    shared: dict[str, Stateful] = {"gate": gate}
    for name, one in inputs.items():
        for intake in one.intakes.values():
            for part, remembering in intake.remembering().items():
                (shared if part == "decoder" else parts)[part_name(part, name)] = remembering
    if assembler is not None:
        parts[assembly_part(resolved)] = assembler
    for name, sink in sinks.items():
        if isinstance(sink, Stateful):
            parts[part_name("throttle", name)] = sink
    keeper.components, keeper.shared_components = parts, shared


def delivery_warnings(resolved: ResolvedConfig) -> Iterator[str]:
    """What a configuration promises less than exactly once, a sentence each."""
    run = resolved.run
    if not run.state_dir and resolved.live:
        yield "run.state_dir is not set: states and outputs that wait are lost with the process"
    for source in resolved.sources:
        yield from _source_warnings(source)
    if build_rate(resolved) is not None:
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
