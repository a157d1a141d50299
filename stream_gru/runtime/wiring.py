"""Wiring: builds the running graph of a resolved configuration.

    Input: source ─▶ Ingest ──┐
    Input: source ─▶ Ingest ──┴─▶ Pipeline ─▶ sinks        Checkpointer: one transaction over all of them

A `Runtime` is immutable.  The daemon drives one, `runtime.reload` builds the next one and the daemon swaps them whole.
Run, replay, probe, demo and the tests use the same builders; they differ in sources and sinks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from stream_gru.config.connector import ignore
from stream_gru.connectors.decoders.rejects import explanation
from stream_gru.connectors.registry import load_decoder
from stream_gru.core.protocols import Engine, FlowControlled, HasState, Redelivering, Sink, Source, Stateful
from stream_gru.core.timestamps import UNITS_NS
from stream_gru.core.types import NS_PER_S, Position
from stream_gru.pipeline.alarms import AlarmRule
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.eviction import StatePolicy
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.control.executor import PauseFilter
from stream_gru.runtime.dead_letter import DeadLetterFile, RejectReporter
from stream_gru.runtime.ingest.channel_join import ChannelJoiner
from stream_gru.runtime.ingest.device_counters import DeviceClock, GapCounter
from stream_gru.runtime.ingest.ingest import NO_STAGES, Admit, Ingest, RateLimit, SharedStages
from stream_gru.runtime.pieces import MessageProgress, ReplayPacer
from stream_gru.runtime.resolved_config import ResolvedConfig, SinkSpec, SourceSpec

log = logging.getLogger(__name__)

_HOLD_PERIODS = 5
_UNBOUNDED = 2**31
_STATES_BYTES = 2**26  # of all streams; more is worth a warning on a small gateway
_IDLE_PERIODS, _IDLE_LEAST_S = 10, 10.0


@dataclass(slots=True)
class Input:
    """A source and the `Ingest` of its messages, by source name (several for a recording of several sources).

    ``speed``: 0 as fast as possible, else a multiple of the recording's own speed; ``max_inflight``: messages that the
    other side sends before it waits for an acknowledgement, 0 for no limit; ``position``: what was processed;
    ``progress``: inside a message that will be delivered again; ``work``: what was read and is not processed yet.
    """

    name: str
    source: Source
    ingests: Mapping[str, Ingest]
    speed: float = 0.0
    max_inflight: int = 0
    position: Position | None = None
    unacknowledged: int = 0
    ended: bool = False
    pacer: ReplayPacer | None = None
    progress: MessageProgress | None = None
    work: Iterator[None] | None = None

    def processed(self, position: Position, messages: int) -> None:
        """Note that ``messages`` more, all up to ``position``, were processed."""
        self.position = position
        self.unacknowledged += messages


@dataclass(frozen=True, slots=True)
class Runtime:
    """One running graph.

    ``batch_rows``: messages a source is asked for at once, and samples in one batch.  A commit is due after
    ``commit_every`` samples or ``commit_interval_s`` seconds.
    """

    pipeline: Pipeline
    checkpointer: Checkpointer
    inputs: tuple[Input, ...]
    sinks: Mapping[str, Sink]
    rejects: RejectReporter = field(default_factory=RejectReporter)
    shared: SharedStages = NO_STAGES
    batch_rows: int = 1024
    commit_every: int = 1_000_000
    commit_interval_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a runtime is built into and outlives it.

    ``wakeup``: called by a source that has something; ``pause_filter``: drops samples of paused streams; ``threaded``:
    each source is read by a thread of its own, also where it is the only one.
    """

    wakeup: Callable[[], None] = ignore
    pause_filter: PauseFilter | None = None
    threaded: bool = False


_ALONE = Surroundings()


def build_runtime(
    config: ResolvedConfig,
    *,
    engine: Engine | None = None,
    surroundings: Surroundings = _ALONE,
    recording: Source | None = None,
    speed: float = 0.0,
    sinks: Mapping[str, Sink] | None = None,
    store: Store | None = None,
) -> Runtime:
    """Build the graph of ``config``.  Opens nothing.

    ``engine``: instead of the one that ``run.engine`` names.  ``recording``: a recording of messages, played at
    ``speed``, in place of the sources.  ``sinks``: in place of the configured ones.  ``store``: where state is kept.

    Raises ConfigError, BundleError.
    """
    run = config.run
    pipeline = Pipeline(
        config.bundle,
        engine or run.engine,
        interval_level=run.interval_level,
        interval_adapt_rate=run.interval_adapt_rate,
        max_streams=max_streams(config),
        alarm=AlarmRule.of(config.config.alarm),
    )
    if config.live:
        _warn_of_memory(pipeline, run.max_streams)
    checkpointer = Checkpointer(pipeline, store, policy=checkpoint_policy(config))
    shared = build_shared(config, checkpointer.cache.load_streams, surroundings.pause_filter)
    if recording is None:
        inputs = tuple(build_input(spec, config, shared, surroundings) for spec in config.sources)
    else:
        ingests = {spec.name: build_ingest(spec, shared, max_streams(config)) for spec in config.sources}
        inputs = (Input("recording", recording, ingests, speed),)
    if sinks is None:
        sinks = {spec.name: build_sink(spec, config) for spec in config.sinks}
    return assemble(config, pipeline, checkpointer, inputs, sinks, shared)


def assemble(
    config: ResolvedConfig,
    pipeline: Pipeline,
    checkpointer: Checkpointer,
    inputs: tuple[Input, ...],
    sinks: Mapping[str, Sink],
    shared: SharedStages,
) -> Runtime:
    """Put built parts together and register those that keep state with the checkpointer."""
    register_stateful(checkpointer, config, inputs, sinks, shared)
    run = config.run
    return Runtime(
        pipeline,
        checkpointer,
        inputs,
        sinks,
        build_reject_reporter(config),
        shared,
        run.batch_rows,
        run.commit_every,
        commit_interval_s(config),
    )


# ---- parts --------------------------------------------------------------------------------------------------------


def build_input(spec: SourceSpec, config: ResolvedConfig, shared: SharedStages, surroundings: Surroundings) -> Input:
    """A source with its stages.  Opens nothing."""
    source = spec.build(
        state_dir=config.run.state_dir,
        batch_rows=config.run.batch_rows,
        alone=len(config.sources) == 1 and not surroundings.threaded,
        wakeup=surroundings.wakeup,
    )
    ingests = {spec.name: build_ingest(spec, shared, max_streams(config))}
    max_inflight = source.max_inflight if isinstance(source, FlowControlled) else 0
    progress = MessageProgress(max(1, max_inflight)) if isinstance(source, Redelivering) else None
    return Input(spec.name, source, ingests, spec.config.replay_speed, max_inflight, progress=progress)


def build_ingest(spec: SourceSpec, shared: SharedStages, streams: int) -> Ingest:
    """The stages of one source; they keep the state of at most ``streams`` streams."""
    fields = spec.fields
    unit = fields.input.time_unit
    return Ingest(
        spec.name,
        load_decoder(spec.format, fields),
        clock=None if fields.clock == "epoch" or unit == "iso" else DeviceClock(2**32 * UNITS_NS[unit], streams),
        gaps=GapCounter(streams) if fields.input.device_seq and spec.live else None,
        joins=spec.joins_channels,
        shared=shared,
        explain=partial(explanation, wanted=fields.input, columns=fields.columns),
    )


def build_sink(spec: SinkSpec, config: ResolvedConfig) -> Sink:
    """A configured sink.  Opens nothing."""
    return spec.build(immediate=config.run.emit == "immediate")


def build_shared(
    config: ResolvedConfig,
    admit: Admit = NO_STAGES.admit,
    pause_filter: PauseFilter | None = None,
    previous: tuple[ResolvedConfig, SharedStages] | None = None,
) -> SharedStages:
    """The stages that all sources share; those of the ``previous`` configuration where their settings are the same."""
    rate_limit, joiner = build_rate_limit(config), build_joiner(config)
    if previous is not None:
        old, stages = previous
        if old.config.limits == config.config.limits:
            rate_limit = stages.rate_limit
        if joiner_settings(old) == joiner_settings(config):
            joiner = stages.joiner
    if joiner is not None:
        joiner.max_streams = max_streams(config)
    return SharedStages(admit, rate_limit, joiner, pause_filter)


def build_rate_limit(config: ResolvedConfig) -> RateLimit | None:
    """The limit over all sources; None where none is set."""
    limits = config.config.limits
    if not limits.total_hz and not limits.per_stream_hz:
        return None
    return RateLimit(limits.total_hz, limits.per_stream_hz)


def joiner_settings(config: ResolvedConfig) -> tuple[tuple[str, ...], int, int, int] | None:
    """Channels, period, hold and lateness (nanoseconds) of the channel join; None where no source needs it."""
    if not any(spec.joins_channels for spec in config.sources):
        return None
    manifest, settings = config.bundle.manifest, config.config.channel_join
    period_ns = max(1, round(manifest.period_s * NS_PER_S))
    return (
        tuple(channel.name for channel in manifest.channels),
        period_ns,
        round(settings.hold_s * NS_PER_S) or _HOLD_PERIODS * period_ns,
        round(settings.allowed_lateness_s * NS_PER_S) or period_ns,
    )


def build_joiner(config: ResolvedConfig) -> ChannelJoiner | None:
    """The channel join that all sources share; None where no source needs it."""
    settings = joiner_settings(config)
    if settings is None:
        return None
    channels, period_ns, hold_ns, lateness_ns = settings
    return ChannelJoiner(len(channels), period_ns, hold_ns, lateness_ns, max_streams=max_streams(config))


def build_reject_reporter(config: ResolvedConfig) -> RejectReporter:
    """Reports rejected messages to the log and, where one is configured, to the dead-letter file."""
    settings = config.config.dead_letter
    path = settings.path
    return RejectReporter(DeadLetterFile(path, settings.max_bytes, settings.max_hz) if path else None)


def _warn_of_memory(pipeline: Pipeline, streams: int) -> None:
    """Log when the states of all streams do not fit into the memory of a small gateway."""
    row, most = pipeline.table.nbytes(), pipeline.table.nbytes() * streams
    if most > _STATES_BYTES:
        log.warning(
            "run.max_streams = %d streams of %.1f kB each can take %.0f MB of memory; lower it to what you need",
            streams,
            row / 1e3,
            most / 1e6,
        )


def build_store(config: ResolvedConfig) -> Store | None:
    """The store in ``run.state_dir``; None without one: then nothing outlives the process."""
    return Store(Path(config.run.state_dir)) if config.run.state_dir else None


# ---- settings that follow from a configuration --------------------------------------------------------------------


def max_streams(config: ResolvedConfig) -> int:
    """How many streams a part may keep state of; unbounded where the checkpointer evicts idle ones."""
    return _UNBOUNDED if config.run.max_streams_policy == "evict" else config.run.max_streams


def watched_streams(config: ResolvedConfig) -> int:
    """How many streams are watched for being idle."""
    run = config.run
    return max(run.max_streams, run.max_stored_streams) if run.max_streams_policy == "evict" else run.max_streams


def stream_idle_timeout_s(config: ResolvedConfig) -> float:
    """After how many seconds without a sample a stream is idle."""
    period_s = config.bundle.manifest.period_s
    return config.run.stream_idle_timeout_s or max(_IDLE_LEAST_S, _IDLE_PERIODS * period_s)


def commit_interval_s(config: ResolvedConfig) -> float:
    """How often to commit, in seconds; more often where a source asks for it."""
    return min([config.run.commit_interval_s, *(spec.config.max_commit_interval_s for spec in config.sources)])


def checkpoint_policy(config: ResolvedConfig) -> StatePolicy:
    """What the checkpointer does where it has a choice."""
    run = config.run
    return StatePolicy(
        max_streams=run.max_streams,
        evict=run.max_streams_policy == "evict",
        max_stored_streams=run.max_stored_streams,
        reject_other_model=run.on_model_change == "reject",
    )


# ---- parts that keep state ----------------------------------------------------------------------------------------


def component_name(part: str, owner: str) -> str:
    """The name under which the store keeps the state of a part of a source or sink."""
    return f"{part}:{owner}"


def joiner_component(config: ResolvedConfig) -> str:
    """The same for the channel join: its state is of these channels, in this order."""
    return component_name("channel_join", ",".join(channel.name for channel in config.bundle.manifest.channels))


def register_stateful(
    checkpointer: Checkpointer,
    config: ResolvedConfig,
    inputs: tuple[Input, ...],
    sinks: Mapping[str, Sink],
    shared: SharedStages,
) -> None:
    """Tell the checkpointer which parts keep state, by a name that stays."""
    by_stream: dict[str, Stateful] = {}
    other: dict[str, Stateful] = {} if shared.pause_filter is None else {"paused": shared.pause_filter.state}
    for one in inputs:
        if one.progress is not None:
            other[component_name("progress", one.name)] = one.progress.state
        for ingest in one.ingests.values():
            for part, stateful in ingest.stateful_parts().items():
                (other if part == "decoder" else by_stream)[component_name(part, ingest.name)] = stateful
    if shared.joiner is not None:
        by_stream[joiner_component(config)] = shared.joiner.state
    for name, sink in sinks.items():
        if isinstance(sink, HasState):
            by_stream[component_name("throttle", name)] = sink.state
    checkpointer.set_components(by_stream, other)
