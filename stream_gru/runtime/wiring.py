"""Parts of a running daemon, made of a plan."""

from __future__ import annotations

from stream_gru.connectors.decoders.registry import load_decoder
from stream_gru.core.timestamps import UNITS_NS
from stream_gru.core.types import NS_PER_S
from stream_gru.runtime.control.commands import PauseFilter
from stream_gru.runtime.dead_letter.file import DeadLetterFile
from stream_gru.runtime.dead_letter.reporter import RejectReporter
from stream_gru.runtime.ingest.channel_join import Assembler
from stream_gru.runtime.ingest.device_clock import DeviceClock
from stream_gru.runtime.ingest.ingest import Intake
from stream_gru.runtime.ingest.rate_limit import RateLimit
from stream_gru.runtime.ingest.sequence_gaps import SequenceWatch
from stream_gru.runtime.resolved_config import ResolvedConfig, SourceSpec

_HOLD_PERIODS = 5
_UNBOUNDED = 2**31
_SILENT_PERIODS, _SILENT_LEAST_S = 10, 10.0


def stream_bound(plan: ResolvedConfig) -> int:
    """Of how many streams a part may remember something; where they make room for each other the keeper sees to it."""
    return _UNBOUNDED if plan.run.max_streams_policy == "evict" else plan.run.max_streams


def watched_streams(plan: ResolvedConfig) -> int:
    """Of how many streams it is watched whether they are silent."""
    run = plan.run
    return max(run.max_streams, run.max_stored_streams) if run.max_streams_policy == "evict" else run.max_streams


def stream_idle_timeout_s(plan: ResolvedConfig) -> float:
    """After how many seconds without a sample a stream is silent."""
    period_s = plan.bundle.manifest.period_s
    return plan.run.stream_idle_timeout_s or max(_SILENT_LEAST_S, _SILENT_PERIODS * period_s)


def assembly_spec(plan: ResolvedConfig) -> tuple[tuple[str, ...], int, int, int] | None:
    """Channels, period, longest hold and wait (nanoseconds): what the assembler is built of.

    None when no source has channels that arrive apart.
    """
    if not any(one.assembled for one in plan.sources):
        return None
    manifest, config = plan.bundle.manifest, plan.config.channel_join
    period_ns = max(1, round(manifest.period_s * NS_PER_S))
    return (
        tuple(channel.name for channel in manifest.channels),
        period_ns,
        round(config.hold_s * NS_PER_S) or _HOLD_PERIODS * period_ns,
        round(config.allowed_lateness_s * NS_PER_S) or period_ns,
    )


def build_assembler(plan: ResolvedConfig) -> Assembler | None:
    """The assembler that all sources share whose channels arrive apart; None when there is no such source."""
    spec = assembly_spec(plan)
    if spec is None:
        return None
    channels, period_ns, max_age_ns, wait_ns = spec
    return Assembler(len(channels), period_ns, max_age_ns, wait_ns, max_streams=stream_bound(plan))


def build_rate(plan: ResolvedConfig) -> RateLimit | None:
    """The limit that all sources share; None when there is none."""
    limits = plan.config.limits
    if not limits.total_hz and not limits.per_stream_hz:
        return None
    return RateLimit(limits.total_hz, limits.per_stream_hz)


def build_reject_reporter(plan: ResolvedConfig) -> RejectReporter:
    """The reporter of rejected messages, with the dead-letter file where one is configured."""
    config = plan.config.dead_letter
    return RejectReporter(DeadLetterFile(config.path, config.max_bytes) if config.path else None)


def build_intake(
    planned: SourceSpec,
    assembler: Assembler | None,
    gate: PauseFilter | None,
    max_streams: int,
    rate: RateLimit | None = None,
) -> Intake:
    """What makes samples of a source's messages."""
    fields = planned.fields
    unit = fields.input.time_unit
    return Intake(
        planned.name,
        load_decoder(planned.format, fields),
        clock=None if fields.clock == "epoch" or unit == "iso" else DeviceClock(2**32 * UNITS_NS[unit], max_streams),
        sequence=SequenceWatch(max_streams) if fields.input.device_seq and planned.live else None,
        assembler=assembler if planned.assembled else None,
        gate=gate,
        rate=rate,
    )
