"""Every metric: name, unit, labels, buckets.  Nobody else names one.

Counters are advanced once a batch, never once a sample.  Labels come from closed sets (reasons, classes, targets and a
few horizons), never from stream names, so that the number of series is known when the daemon starts.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from stream_gru.manifest import Manifest
from stream_gru.scoring import ScoreTotals
from stream_gru.types import F64, NS_PER_S, DropReason, PredictionBatch, ResetReason

PREFIX = "stream_gru"
_Child = TypeVar("_Child")
_STEP_BUCKETS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3)
_END_TO_END_BUCKETS = (1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """All metrics of one daemon in ``registry``.  ``source``: the kind of its source, e.g. ``replay``."""

    def __init__(self, registry: CollectorRegistry, manifest: Manifest, source: str, engine: str, version: str) -> None:
        self.registry = registry
        self._horizons = shown_horizons(0 if manifest.forecast is None else manifest.forecast.horizon)
        self._targets = [] if manifest.forecast is None else manifest.forecast.targets
        self._labels = [] if manifest.classes is None else manifest.classes.labels
        self._scored: ScoreTotals | None = None
        self._info(manifest, engine, version)
        self._samples(source)
        self._latencies()
        self._scores(manifest)

    def _info(self, manifest: Manifest, engine: str, version: str) -> None:
        build = Info(f"{PREFIX}_build", "Version of the software", registry=self.registry)
        build.info({"version": version, "python": platform.python_version(), "engine": engine})
        model = Info(f"{PREFIX}_model", "The model that runs", registry=self.registry)
        model.info({"model_id": manifest.model_id, "regime": manifest.regime, "created": manifest.created})

    def _samples(self, source: str) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

        self._received = counter("samples_received", "Samples that arrived", "source").labels(source)
        self._applied = counter("samples_applied", "Samples that became a step", "source").labels(source)
        dropped = counter("samples_dropped", "Samples that were not applied", "source", "reason")
        self._dropped = {reason: dropped.labels(source, reason.text) for reason in DropReason}
        self._imputed = counter("steps_imputed", "Steps filled in, and samples with a channel held")
        resets = counter("stream_resets", "Hidden states replaced by the initial one", "reason")
        self._resets = {reason: resets.labels(reason.text) for reason in ResetReason if reason}
        self._streams = Gauge(f"{PREFIX}_streams", "Streams that have a state", registry=self.registry)
        self._last_sample = Gauge(
            f"{PREFIX}_last_sample_timestamp_seconds",
            "Event time of the newest applied sample",
            ["source"],
            registry=self.registry,
        ).labels(source)
        classes = counter("classifications", "Samples by the class they were given", "class")
        self._classes = [classes.labels(label) for label in self._labels]
        self._labelled = counter("labelled_samples", "Samples whose true class was known")
        self._correct = counter("labelled_samples_correct", "Samples whose true class was recognised")

    def _latencies(self) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}_{name}_seconds", text, registry=self.registry, buckets=buckets)

        self._inference = histogram("inference_duration", "One call of the engine", _STEP_BUCKETS)
        self._batch = histogram("batch_duration", "From bytes to written outputs, a batch", (*_STEP_BUCKETS, 0.5, 1.0))
        self._end_to_end = histogram("end_to_end_latency", "From arrival to written output", _END_TO_END_BUCKETS)

    def _scores(self, manifest: Manifest) -> None:
        keys = ["target", "horizon"]

        def counter(name: str, text: str) -> list[list[Counter]]:
            family = Counter(f"{PREFIX}_{name}", text, keys, registry=self.registry)
            return [[family.labels(target, str(h)) for h in self._horizons] for target in self._targets]

        def gauge(name: str, text: str) -> list[list[Gauge]]:
            family = Gauge(f"{PREFIX}_{name}", text, keys, registry=self.registry)
            return [[family.labels(target, str(h)) for h in self._horizons] for target in self._targets]

        self._counters = {
            "truths": counter("forecasts_scored", "Forecasts whose truth has arrived"),
            "absolute_error": counter("forecast_absolute_error", "Sum of absolute errors, unit of the channel"),
            "persistence_error": counter("persistence_absolute_error", "The same for repeating the last value"),
            "covered": counter("interval_covered", "Truths that lay inside their interval"),
        }
        self._mae = gauge("forecast_mae", "Mean absolute error since start, unit of the channel")
        self._skill = gauge("forecast_skill_ratio", "1 - error / error of repeating the last value, since start")
        self._coverage = gauge("interval_coverage_ratio", "Share of truths inside their interval, since start")

    def observe_batch(self, received: int, out: PredictionBatch, streams: int) -> None:
        """Count one processed batch; ``received`` includes rejects."""
        self._received.inc(received)
        self._applied.inc(len(out))
        for reason, n in out.dropped.items():
            self._dropped[reason].inc(n)
        for cause, n in out.resets.items():
            self._resets[cause].inc(n)
        self._streams.set(streams)
        if not len(out):
            return
        self._imputed.inc(int(out.imputed.sum()))
        self._last_sample.set(int(out.time_ns.max()) / NS_PER_S)
        if out.probabilities is not None and self._classes:
            given = np.isfinite(out.probabilities).all(axis=1)
            best = out.probabilities.argmax(axis=1)
            for child, n in zip(self._classes, np.bincount(best[given], minlength=len(self._classes)), strict=True):
                child.inc(int(n))
            if out.label is not None:
                known = (out.label >= 0) & out.trusted
                self._labelled.inc(int(known.sum()))
                self._correct.inc(int((given & known & (best == out.label)).sum()))

    def observe_inference(self, seconds: float) -> None:
        """Record one call of the engine."""
        self._inference.observe(seconds)

    def observe_latency(self, batch_s: float, end_to_end_s: float | None) -> None:
        """Record how long one batch took, and how old its oldest sample was when its output stood written."""
        self._batch.observe(batch_s)
        if end_to_end_s is not None:
            self._end_to_end.observe(end_to_end_s)

    def observe_scores(self, totals: ScoreTotals) -> None:
        """Publish what forecasts were worth so far."""
        new = totals if self._scored is None else totals.minus(self._scored)
        self._scored = totals
        for name, children in self._counters.items():
            for counter, value in self._shown(children, getattr(new, name)):
                counter.inc(max(0.0, value))  # a sum over more streams may round a little lower
        gauges = ((self._mae, totals.mae()), (self._skill, totals.skill()), (self._coverage, totals.coverage()))
        for family, values in gauges:
            for gauge, value in self._shown(family, values):
                gauge.set(value)

    def _shown(self, children: list[list[_Child]], values: F64) -> Iterator[tuple[_Child, float]]:
        """Each child with its value, where that is a number."""
        for row, numbers in zip(children, values, strict=True):
            for child, horizon in zip(row, self._horizons, strict=True):
                if np.isfinite(numbers[horizon - 1]):
                    yield child, float(numbers[horizon - 1])


def shown_horizons(horizon: int) -> list[int]:
    """The horizons that have series: first, middle, last."""
    return sorted({1, (horizon + 1) // 2, horizon}) if horizon else []
