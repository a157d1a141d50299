"""Daemons over inputs and sinks that a test made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stream_gru.core.protocols import Sink
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.daemon import Daemon
from stream_gru.runtime.health import HealthReporter
from stream_gru.runtime.ingest.ingest import SharedStages
from stream_gru.runtime.metrics import Metrics
from stream_gru.runtime.wiring import Input, Runtime


def daemon_of(
    inputs: Sequence[Input],
    pipeline: Pipeline,
    sinks: Mapping[str, Sink],
    *,
    checkpointer: Checkpointer | None = None,
    metrics: Metrics | None = None,
    batch_rows: int = 1024,
    commit_every: int = 1_000_000,
    commit_interval_s: float = 1.0,
    **clocks: Callable[..., object],
) -> Daemon:
    """A daemon; ``checkpointer``: None stores nothing; ``clocks``: clock, wall_ns and wait of `Daemon`.

    The ingests of the inputs are shared with the checkpointer, as `build_runtime` does it.
    """
    checkpointer = checkpointer or Checkpointer(pipeline)
    for one in inputs:
        for ingest in one.ingests.values():
            shared = ingest.shared
            ingest.shared = SharedStages(
                checkpointer.cache.load_streams, shared.rate_limit, shared.joiner, shared.pause_filter
            )
    runtime = Runtime(
        pipeline,
        checkpointer,
        tuple(inputs),
        dict(sinks),
        batch_rows=batch_rows,
        commit_every=commit_every,
        commit_interval_s=commit_interval_s,
    )
    return Daemon(runtime, health=HealthReporter(metrics=metrics), **clocks)  # type: ignore[arg-type]
