from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stream_gru.core.prediction import BatchCounts
from stream_gru.core.types import (
    DropReason,
    PredictionBatch,
    Rejected,
    ResetReason,
    SampleBatch,
    SinkHealth,
    SourceHealth,
)
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.metrics import Metrics, build_registry, shown_horizons
from tests.support.batches import CHANNELS, batch, hostile_batches
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated, toy_pipeline

MODEL = calibrated(make_bundle(channels=CHANNELS, labels=2, horizon=10))
LABELS = {
    "source",
    "reason",
    "class",
    "target",
    "horizon",
    "le",
    "version",
    "python",
    "engine",
    "model_id",
    "regime",
    "sink",
    "action",
    "result",
}


def scraped_series(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return all series as a scraper sees them."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def by_label(registry: CollectorRegistry, name: str, label: str) -> dict[str, float]:
    """Return the values above 0 of one family, by one label."""
    found = {
        dict(labels)[label]: v for (n, labels), v in scraped_series(registry).items() if n == f"stream_gru_{name}_total"
    }
    return {key: value for key, value in found.items() if value}


def ready_metrics(pipeline: Pipeline) -> Metrics:
    """Return metrics of a daemon with one source and one sink."""
    metrics = Metrics(CollectorRegistry(), pipeline.manifest, "toy", "0.1")
    metrics.add_source("replay")
    metrics.add_sink("file")
    return metrics


def observe_batches(pipeline: Pipeline, batches: list[SampleBatch]) -> tuple[Metrics, list[PredictionBatch]]:
    """Return the metrics of a run."""
    metrics = ready_metrics(pipeline)
    outs: list[PredictionBatch] = []
    for given_batch in batches:
        out = pipeline.process(given_batch)
        outs.append(out)
        metrics.observe_batch("replay", BatchCounts.of(given_batch.received, out), len(pipeline.streams))
        metrics.observe_inference(0.001)
        metrics.observe_latency(0.002, None)
        totals = pipeline.scores()
        assert totals is not None
        metrics.observe_scores(totals)
    return metrics, outs


@settings(max_examples=40)
@given(st.lists(hostile_batches(40), min_size=1, max_size=4))
def test_counters_equal_what_was_processed(batches: list[SampleBatch]) -> None:
    """Received, applied, dropped, resets, classes, labels, scores: all are those of the outputs."""
    pipeline = toy_pipeline(MODEL)
    metrics, outs = observe_batches(pipeline, [replace(b, rejected=(Rejected(DropReason.PARSE, 2),)) for b in batches])
    dropped, resets, classes = Counter[str](), Counter[str](), Counter[str]()
    applied = labelled = 0
    for out in outs:
        dropped.update({reason.text: n for reason, n in out.dropped.items()})
        resets.update({reason.text: n for reason, n in out.resets.items()})
        numbers = out.probabilities
        assert numbers is not None
        assert out.label is not None
        classes.update(f"label{i}" for i in numbers.argmax(axis=1)[np.isfinite(numbers).all(axis=1)].tolist())
        applied += len(out)
        labelled += int((out.label >= 0).sum())
    registry = metrics.registry
    assert by_label(registry, "samples_dropped", "reason") == dropped
    assert by_label(registry, "stream_resets", "reason") == resets
    assert by_label(registry, "classifications", "class") == classes
    found = scraped_series(registry)
    source = (("source", "replay"),)
    assert found["stream_gru_samples_received_total", source] == sum(b.received + 2 for b in batches)
    assert found["stream_gru_samples_applied_total", source] == applied
    assert found["stream_gru_labelled_samples_total", ()] == labelled
    assert found["stream_gru_streams", ()] == len(pipeline.streams)
    totals = pipeline.scores()
    assert totals is not None
    for d, target in enumerate(pipeline.spec.targets):
        for h in (1, 5, 10):
            labels = (("horizon", str(h)), ("target", target))
            assert found["stream_gru_forecasts_scored_total", labels] == totals.truths[d, h - 1]
            error = found["stream_gru_forecast_absolute_error_total", labels]
            np.testing.assert_allclose(error, totals.absolute_error[d, h - 1], rtol=1e-9)


def test_series_are_known_before_the_first_sample() -> None:
    """All series exist from the start and no stream adds one; label values come from closed sets."""
    pipeline = toy_pipeline(MODEL, max_streams=10**6)
    before = set(scraped_series(ready_metrics(pipeline).registry))
    many = [batch([f"pump-{i}" for i in range(200)], [t] * 200) for t in range(15)]
    metrics, _ = observe_batches(pipeline, many)
    found = set(scraped_series(metrics.registry))
    assert found == before
    assert {name for _, labels in found for name, _ in labels} <= {*LABELS, "created"}
    assert not any("pump-" in value for _, labels in found for _, value in labels)
    reasons = {dict(labels)["reason"] for name, labels in found if name == "stream_gru_samples_dropped_total"}
    assert reasons == {reason.text for reason in DropReason}
    causes = {dict(labels)["reason"] for name, labels in found if name == "stream_gru_stream_resets_total"}
    assert causes == {reason.text for reason in ResetReason if reason}


def test_all_names_have_the_prefix() -> None:
    """Except those of the process, the interpreter and its garbage collector, every name starts with stream_gru_."""
    found = Metrics(build_registry(), MODEL.manifest, "toy", "0.1").registry
    names = {name for name, _ in scraped_series(found)}
    assert all(name.startswith(("stream_gru_", "process_", "python_")) for name in names)
    assert {"stream_gru_build_info", "stream_gru_model_info", "process_resident_memory_bytes"} <= names


def test_every_metric_is_explained_and_units_are_in_the_name() -> None:
    """Each has a help text; times are in seconds."""
    registry = Metrics(CollectorRegistry(), MODEL.manifest, "toy", "0.1").registry
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    assert all(family.documentation for family in families if not family.name.endswith("_created"))
    for family in families:
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_a_non_finite_output_has_no_class() -> None:
    """A degraded output counts as applied and labelled, not as a class and not as correct."""
    pipeline = toy_pipeline(MODEL)
    out = pipeline.process(batch(["p"] * 3, [0, 1, 2], label=np.zeros(3, np.int32), labels=("label0",)))
    assert out.probabilities is not None
    out.probabilities[:] = np.array([[1, 0], [np.nan, np.nan], [0, 1]])
    metrics = Metrics(CollectorRegistry(), pipeline.manifest, "toy", "0.1")
    metrics.observe_batch("replay", BatchCounts.of(3, out), 1)
    found = scraped_series(metrics.registry)
    assert by_label(metrics.registry, "classifications", "class") == {"label0": 1, "label1": 1}
    assert found["stream_gru_labelled_samples_total", ()] == 3
    assert found["stream_gru_labelled_samples_correct_total", ()] == 1


def test_scores_include_evicted_streams() -> None:
    """A stream evicted between two updates reduces no counter."""
    pipeline = toy_pipeline(MODEL)
    metrics = ready_metrics(pipeline)
    for step in range(4):
        pipeline.process(batch(["p"] * 30, list(range(30 * step, 30 * step + 30))))
        totals = pipeline.scores()
        assert totals is not None
        metrics.observe_scores(totals)
        pipeline.table.evict("p")
    key = (("horizon", "1"), ("target", pipeline.spec.targets[0]))
    assert scraped_series(metrics.registry)["stream_gru_forecasts_scored_total", key] == 4 * 29


def test_lower_scores_leave_counters_unchanged() -> None:
    """A sum may be slightly smaller than the last one."""
    pipeline = toy_pipeline(MODEL)
    metrics, _ = observe_batches(pipeline, [batch(["p"] * 30, list(range(30)))])
    before = scraped_series(metrics.registry)
    totals = pipeline.scores()
    assert totals is not None
    metrics.observe_scores(replace(totals, absolute_error=totals.absolute_error * (1 - 1e-15)))
    after = scraped_series(metrics.registry)
    counters = [key for key in before if key[0] == "stream_gru_forecast_absolute_error_total"]
    assert counters
    assert [after[key] for key in counters] == [before[key] for key in counters]


def test_models_without_a_head_have_no_series_of_it() -> None:
    """No forecast, no scores; no classes, no classifications."""
    only_classes = make_bundle(horizon=0)
    registry = Metrics(CollectorRegistry(), only_classes.manifest, "toy", "0").registry
    assert not any("forecast" in name for name, _ in scraped_series(registry))
    only_forecast = make_bundle(labels=0)
    registry = Metrics(CollectorRegistry(), only_forecast.manifest, "toy", "0").registry
    assert not any("classifications" in name for name, _ in scraped_series(registry))


def test_first_middle_and_last_horizon_are_shown() -> None:
    """At most three series per target, at any horizon."""
    assert [shown_horizons(h) for h in (0, 1, 2, 3, 96)] == [[], [1], [1, 2], [1, 2, 3], [1, 48, 96]]


def test_counters_of_sources_and_sinks_only_increase() -> None:
    """A restarted counter is added from 0; gauges follow the source."""
    metrics = ready_metrics(toy_pipeline(MODEL))
    for reconnects, queued in ((2, 7), (3, 0), (1, 4)):
        metrics.observe_source("replay", SourceHealth(connected=queued > 0, queued=queued, reconnects=reconnects))
        metrics.observe_sink("file", SinkHealth(failed=reconnects, queued=queued))
    found = scraped_series(metrics.registry)
    assert found["stream_gru_source_reconnects_total", (("source", "replay"),)] == 4
    assert found["stream_gru_sink_failed_total", (("sink", "file"),)] == 4
    assert found["stream_gru_source_queue_messages", (("source", "replay"),)] == 4
    assert found["stream_gru_source_connected", (("source", "replay"),)] == 1


def test_another_model_replaces_the_series_of_the_model() -> None:
    """Classes and targets of the earlier model are gone, counters of samples continue."""
    pipeline = toy_pipeline(MODEL)
    metrics, _ = observe_batches(pipeline, [batch(["p"] * 30, list(range(30)))])
    metrics.set_model(make_bundle(labels=3, horizon=0).manifest, "toy")
    found = scraped_series(metrics.registry)
    classes = {dict(labels)["class"] for name, labels in found if name == "stream_gru_classifications_total"}
    assert classes == {"label0", "label1", "label2"}
    assert not any("forecast" in name for name, _ in found)
    assert found["stream_gru_samples_applied_total", (("source", "replay"),)] == 30
