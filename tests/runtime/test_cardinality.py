"""The number of series is known when the daemon starts, whatever streams arrive."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from stream_gru.core.prediction import BatchCounts
from stream_gru.core.types import DropReason, SinkHealth, SourceHealth
from stream_gru.pipeline.pipeline import output_spec
from stream_gru.runtime.metrics import Metrics
from tests.support.fake_daemon import daemon_outputs
from tests.support.models import make_bundle

MANY = 5000


def series(registry: CollectorRegistry) -> set[str]:
    """Return names and labels of all series, without their values."""
    lines = generate_latest(registry).decode().splitlines()
    return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}


def test_five_thousand_streams_add_no_series() -> None:
    """Neither their names, nor their number, nor their dropped samples."""
    bundle = make_bundle(labels=3)
    spec = output_spec(bundle.manifest, 0.9)
    metrics = Metrics(CollectorRegistry(), bundle.manifest, "numpy", "0")
    metrics.add_source("mqtt")
    metrics.add_sink("file")
    before = series(metrics.registry)
    names = [f"stream-{i}-{{label}}" for i in range(MANY)]
    for first in range(0, MANY, 500):
        batch = replace(daemon_outputs(names[first : first + 500], first), spec=spec)
        batch.dropped.update(dict.fromkeys(DropReason, 1))  # type: ignore[attr-defined]
        metrics.observe_batch("mqtt", BatchCounts.of(600, batch), first + 500)
        metrics.observe_outputs("file", 500)
        metrics.observe_sink("file", SinkHealth())
        metrics.observe_source("mqtt", SourceHealth(queued=first))
        metrics.observe_idle(first, first, 1)
        metrics.observe_command("unknown", ok=False)
    after = series(metrics.registry)
    assert after == before
    assert not any("stream-" in line for line in after)
    assert f"stream_gru_streams {float(MANY)}" in generate_latest(metrics.registry).decode()
