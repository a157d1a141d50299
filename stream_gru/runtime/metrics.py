"""Every metric: name, unit, labels, buckets.  Nobody else names one.

Counters are advanced once a batch, never once a sample.  Labels come from closed sets (reasons, classes, targets and a
few horizons), never from stream names, so that the number of series is known when the daemon starts.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from stream_gru.core.types import F64, NS_PER_S, DropReason, ResetReason, SinkHealth, SourceHealth
from stream_gru.model.manifest import Manifest
from stream_gru.pipeline.batch_counts import BatchCounts
from stream_gru.pipeline.scoring import ScoreTotals

PREFIX = "stream_gru"
_Child = TypeVar("_Child")
_STEP_BUCKETS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3)
_END_TO_END_BUCKETS = (1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def build_registry() -> CollectorRegistry:
    """A registry of its own, with the metrics of the process."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, which nobody asks for
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class Metrics:
    """All metrics of one daemon in ``registry``; `add_source` and `add_sink` begin the series of those."""

    def __init__(self, registry: CollectorRegistry, manifest: Manifest, engine: str, version: str) -> None:
        self.registry = registry
        self._version = version
        self._of_the_model: list[Collector] = []
        self._sources: dict[str, SourceHealth] = {}
        self._sinks: dict[str, SinkHealth] = {}
        self._kept = 0, 0, 0
        self._samples()
        self._delivery()
        self._operation()
        self._latencies()
        self.set_model(manifest, engine)

    def set_model(self, manifest: Manifest, engine: str) -> None:
        """Name the model that runs now; series that belong to a model before it end, and scores begin anew."""
        for family in self._of_the_model:
            self.registry.unregister(family)
        self._of_the_model = []
        self._horizons = shown_horizons(0 if manifest.forecast is None else manifest.forecast.horizon)
        self._targets = [] if manifest.forecast is None else manifest.forecast.targets
        self._labels = [] if manifest.classes is None else manifest.classes.labels
        self._scored: ScoreTotals | None = None
        self._info(manifest, engine)
        self._scores()

    def add_source(self, source: str, *, connected: bool = True) -> None:
        """Begin the series of a source at 0, so that alerts on them work from the start.

        ``connected``: whether it is there already, as a file is.
        """
        self._sources.setdefault(source, SourceHealth(connected=connected))
        for family in (self._received, self._applied, self._messages, self._joined, self._missing, self._last_sample):
            family.labels(source)
        for reason in DropReason:
            self._dropped.labels(source, reason.text)
        self.observe_source(source, self._sources[source])

    def add_sink(self, sink: str, *, connected: bool = True) -> None:
        """Begin the series of a sink at 0; ``connected`` as in `add_source`."""
        self._sinks.setdefault(sink, SinkHealth(connected=connected))
        self._outputs.labels(sink)
        self.observe_sink(sink, self._sinks[sink])

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _info(self, manifest: Manifest, engine: str) -> None:
        build = Info(f"{PREFIX}_build", "Version of the software", registry=self.registry)
        build.info({"version": self._version, "python": platform.python_version(), "engine": engine})
        model = Info(f"{PREFIX}_model", "The model that runs", registry=self.registry)
        model.info({"model_id": manifest.model_id, "regime": manifest.regime, "created": manifest.created})
        self._of_the_model += [build, model]

    def _samples(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._messages = counter("messages_received", "Messages that arrived, before anybody looked inside", "source")
        self._received = counter("samples_received", "Samples that arrived", "source")
        self._applied = counter("samples_applied", "Samples that became a step", "source")
        self._dropped = counter("samples_dropped", "Samples that were not applied", "source", "reason")
        self._joined = counter("records_joined", "Records of single channels that were joined to samples", "source")
        self._missing = counter("device_seq_missing", "Samples that a device counted and nobody saw", "source")
        self._last_sample = gauge("last_sample_timestamp_seconds", "Event time of the newest applied sample", "source")
        self._imputed = counter("steps_imputed", "Steps filled in, and samples with a channel held")
        resets = counter("stream_resets", "Hidden states replaced by the initial one", "reason")
        self._resets = {reason: resets.labels(reason.text) for reason in ResetReason if reason}
        self._streams = gauge("streams", "Streams that have a state")
        self._silent = gauge("streams_idle", "Streams from which nothing comes any more")
        self._paused = gauge("streams_paused", "Streams that were paused by a command")
        self._silences = counter("stream_timeouts", "How often a stream fell silent")
        self._labelled = counter("labelled_samples", "Samples whose true class was known")
        self._correct = counter("labelled_samples_correct", "Samples whose true class was recognised")
        self._alarms = counter("alarms", "Outputs that were an alarm")

    def _delivery(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._connected = gauge("source_connected", "1 while the port is open or the broker answers", "source")
        self._queue = gauge("source_queue_messages", "Messages that wait to be processed", "source")
        self._queue_bytes = gauge("source_queue_bytes", "Bytes that wait to be processed", "source")
        self._reconnects = counter("source_reconnects", "How often a source was lost and found again", "source")
        self._sessions = counter("source_sessions_lost", "How often a broker had forgotten the session", "source")
        self._unprotected = counter("source_qos0_messages", "Messages that came without acknowledgement", "source")
        self._redelivered = counter("source_redelivered", "Messages that came again and were known already", "source")
        self._outputs = counter("outputs", "Outputs handed to a sink", "sink")
        self._sink_connected = gauge("sink_connected", "1 while the file is open or the server answers", "sink")
        self._sink_queue = gauge("sink_queue", "Outputs that are not confirmed yet", "sink")
        self._failed = counter("sink_failed", "Outputs that the other side refused", "sink")
        self._discarded = counter("sink_dropped", "Outputs given up because the queue was full", "sink")
        self._sink_reconnects = counter("sink_reconnects", "How often a sink was lost and found again", "sink")

    def _operation(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._level = gauge("interval_nominal_coverage_ratio", "Share of truths that intervals shall hold")
        self._loop = gauge("loop_last_timestamp_seconds", "When the loop was last at its top")
        self._commits = counter("commits", "Commits: what was processed is durable, its inputs are acknowledged")
        self._store_up = gauge("state_store_up", "1 while states are stored, 0 without a store or after it failed")
        self._damaged = counter("states_damaged", "Stored states and memories that could not be used")
        self._evicted = counter("streams_evicted", "Streams that made room in memory and are stored")
        self._restored = counter("streams_restored", "Evicted streams that came back")
        commands = counter("commands", "Commands from outside", "action", "result")
        self._commands = {
            (action, well): commands.labels(action, "ok" if well else "refused")
            for action in ("reset", "pause", "resume", "export", "import", "list", "forget", "unknown")
            for well in (True, False)
        }
        reloads = counter("reloads", "Reloads of the configuration", "result")
        self._reloads = {True: reloads.labels("ok"), False: reloads.labels("refused")}
        self._reload_ok = gauge("config_last_reload_successful", "1 when the last reload was taken, 0 when refused")
        self._reload_time = gauge("config_last_reload_success_timestamp_seconds", "When the configuration was taken")

    def _latencies(self) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}_{name}_seconds", text, registry=self.registry, buckets=buckets)

        self._inference = histogram("inference_duration", "One call of the engine", _STEP_BUCKETS)
        self._batch = histogram("batch_duration", "From bytes to written outputs, a batch", (*_STEP_BUCKETS, 0.5, 1.0))
        self._end_to_end = histogram("end_to_end_latency", "From arrival to written output", _END_TO_END_BUCKETS)
        self._commit = histogram(
            "commit_duration", "From the beginning of a commit until its inputs were acknowledged", _END_TO_END_BUCKETS
        )

    def _scores(self) -> None:
        keys = ["target", "horizon"]

        def counter(name: str, text: str) -> list[list[Counter]]:
            family = self._counter(name, text, *keys)
            self._of_the_model.append(family)
            return [[family.labels(target, str(h)) for h in self._horizons] for target in self._targets]

        def gauge(name: str, text: str) -> list[list[Gauge]]:
            family = self._gauge(name, text, *keys)
            self._of_the_model.append(family)
            return [[family.labels(target, str(h)) for h in self._horizons] for target in self._targets]

        classes = self._counter("classifications", "Samples by the class they were given", "class")
        self._of_the_model.append(classes)
        self._classes = [classes.labels(label) for label in self._labels]
        self._counters = {
            "truths": counter("forecasts_scored", "Forecasts whose truth has arrived"),
            "absolute_error": counter("forecast_absolute_error", "Sum of absolute errors, unit of the channel"),
            "persistence_error": counter("persistence_absolute_error", "The same for repeating the last value"),
            "covered": counter("interval_covered", "Truths that lay inside their interval"),
        }
        self._mae = gauge("forecast_mae", "Mean absolute error since start, unit of the channel")
        self._skill = gauge("forecast_skill_ratio", "1 - error / error of repeating the last value, since start")
        self._coverage = gauge("interval_coverage_ratio", "Share of truths inside their interval, since start")

    def observe_batch(self, source: str, counts: BatchCounts, streams: int) -> None:
        """Count one processed batch; ``streams``: how many have a state after it."""
        self._received.labels(source).inc(counts.received)
        self._applied.labels(source).inc(counts.applied)
        for reason, n in counts.dropped.items():
            self._dropped.labels(source, reason.text).inc(n)
        for cause, n in counts.resets.items():
            self._resets[cause].inc(n)
        self._streams.set(streams)
        if counts.max_event_ns is None:
            return
        self._imputed.inc(counts.imputed)
        self._last_sample.labels(source).set(counts.max_event_ns / NS_PER_S)
        self._alarms.inc(counts.alarms)
        for child, n in zip(self._classes, counts.by_class.tolist(), strict=True):
            child.inc(n)
        self._labelled.inc(counts.labelled)
        self._correct.inc(counts.correct)

    def observe_arrival(self, source: str, messages: int, joined: int, missing: int) -> None:
        """Count messages of a source, records joined, and samples that are missing by a device's own counter."""
        self._messages.labels(source).inc(messages)
        if joined:
            self._joined.labels(source).inc(joined)
        if missing:
            self._missing.labels(source).inc(missing)

    def observe_outputs(self, sink: str, outputs: int) -> None:
        """Count outputs handed to a sink."""
        self._outputs.labels(sink).inc(outputs)

    def observe_source(self, source: str, health: SourceHealth) -> None:
        """Publish how a source is doing."""
        before = self._sources.get(source, SourceHealth())
        self._sources[source] = health
        self._connected.labels(source).set(health.connected)
        self._queue.labels(source).set(health.queued)
        self._queue_bytes.labels(source).set(health.queued_bytes)
        self._reconnects.labels(source).inc(_more(health.reconnects, before.reconnects))
        self._sessions.labels(source).inc(_more(health.sessions_lost, before.sessions_lost))
        self._unprotected.labels(source).inc(_more(health.qos0_messages, before.qos0_messages))
        self._redelivered.labels(source).inc(_more(health.redelivered, before.redelivered))

    def observe_sink(self, sink: str, health: SinkHealth) -> None:
        """Publish how a sink is doing."""
        before, self._sinks[sink] = self._sinks[sink], health
        self._sink_connected.labels(sink).set(health.connected)
        self._sink_queue.labels(sink).set(health.queued)
        self._failed.labels(sink).inc(_more(health.failed, before.failed))
        self._discarded.labels(sink).inc(_more(health.dropped, before.dropped))
        self._sink_reconnects.labels(sink).inc(_more(health.reconnects, before.reconnects))

    def observe_silence(self, silent: int, paused: int, new: int) -> None:
        """Publish how many streams are silent and paused; ``new`` have just fallen silent."""
        self._silent.set(silent)
        self._paused.set(paused)
        self._silences.inc(new)

    def observe_level(self, level: float) -> None:
        """Publish what the intervals promise."""
        self._level.set(level)

    def observe_loop(self, time_s: float) -> None:
        """The loop is at its top; ``time_s``: seconds since 1970."""
        self._loop.set(time_s)

    def observe_commit(self, seconds: float) -> None:
        """Count a commit that took so long."""
        self._commits.inc()
        self._commit.observe(seconds)

    def observe_store(self, up: bool, damaged: int, evicted: int, restored: int) -> None:
        """Publish how the store is doing; counts since the process began."""
        self._store_up.set(up)
        for index, (family, now) in enumerate(
            ((self._damaged, damaged), (self._evicted, evicted), (self._restored, restored))
        ):
            family.inc(_more(now, self._kept[index]))
        self._kept = damaged, evicted, restored

    def observe_command(self, action: str, *, ok: bool) -> None:
        """Count a command from outside."""
        self._commands[action, ok].inc()

    def observe_reload(self, time_s: float, *, well: bool) -> None:
        """Count a reload; the start of the daemon is the first that was taken."""
        self._reload_ok.set(well)
        self._reloads[well].inc()
        if well:
            self._reload_time.set(time_s)

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
                counter.inc(max(0.0, value))  # a counter that fell would stop the daemon
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


def _more(now: int, before: int) -> int:
    """What a counter gained; one that fell began anew."""
    return now - before if now >= before else now


def shown_horizons(horizon: int) -> list[int]:
    """The horizons that have series: first, middle, last."""
    return sorted({1, (horizon + 1) // 2, horizon}) if horizon else []
