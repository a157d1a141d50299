"""All Prometheus metrics: names, help texts, labels, buckets.  No other module defines one.

Counters advance once per batch, never per sample.  Label values come from closed sets (reasons, classes, targets and a
few horizons), never from stream names, so the number of series is known when the daemon starts.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from stream_gru.connectors.folders import disk_bytes
from stream_gru.core.prediction import BatchCounts
from stream_gru.core.types import F64, NS_PER_S, DropReason, ResetReason, SinkHealth, SourceHealth
from stream_gru.model.manifest import Manifest
from stream_gru.pipeline.scoring import ScoreTotals
from stream_gru.runtime.dead_letter import SkipReason

PREFIX = "stream_gru"
_Child = TypeVar("_Child")
_STEP_BUCKETS = (25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3)
_END_TO_END_BUCKETS = (1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def build_registry() -> CollectorRegistry:
    """Return a new registry with the metrics of the process."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # would add a second series for each counter
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


class Metrics:
    """All metrics of one daemon in ``registry``; `add_source` and `add_sink` create the series of theirs."""

    def __init__(self, registry: CollectorRegistry, manifest: Manifest, engine: str, version: str) -> None:
        self.registry = registry
        self._version = version
        self._model_metrics: list[Collector] = []
        self._sources: dict[str, SourceHealth] = {}
        self._sinks: dict[str, SinkHealth] = {}
        self._stored_counts = 0, 0, 0
        self._disk_bytes = {"state": 0, "other": disk_bytes()}
        self._skipped_before: Mapping[SkipReason, int] = {}
        self._samples()
        self._delivery()
        self._operation()
        self._latencies()
        self.set_model(manifest, engine)

    def set_model(self, manifest: Manifest, engine: str) -> None:
        """Publish the running model; series of an earlier model end, and scores start at 0."""
        for family in self._model_metrics:
            self.registry.unregister(family)
        self._model_metrics = []
        self._horizons = shown_horizons(0 if manifest.forecast is None else manifest.forecast.horizon)
        self._targets = [] if manifest.forecast is None else manifest.forecast.targets
        self._labels = [] if manifest.classes is None else manifest.classes.labels
        self._scored: ScoreTotals | None = None
        self._info(manifest, engine)
        self._scores()

    def add_source(self, source: str, *, connected: bool = True) -> None:
        """Create the series of a source at 0, so that alerts on them work from the start.

        ``connected``: True for a source that is always connected, such as a file.
        """
        self._sources.setdefault(source, SourceHealth(connected=connected))
        for family in (self._received, self._applied, self._messages, self._joined, self._missing, self._last_sample):
            family.labels(source)
        for reason in DropReason:
            self._dropped.labels(source, reason.text)
        self.observe_source(source, self._sources[source])

    def add_sink(self, sink: str, *, connected: bool = True) -> None:
        """Create the series of a sink at 0; ``connected`` as in `add_source`."""
        self._sinks.setdefault(sink, SinkHealth(connected=connected))
        self._outputs.labels(sink)
        self.observe_sink(sink, self._sinks[sink])

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _info(self, manifest: Manifest, engine: str) -> None:
        build = Info(f"{PREFIX}_build", "Version of stream_gru, Python and the engine", registry=self.registry)
        build.info({"version": self._version, "python": platform.python_version(), "engine": engine})
        model = Info(f"{PREFIX}_model", "Running model", registry=self.registry)
        model.info({"model_id": manifest.model_id, "regime": manifest.regime, "created": manifest.created})
        self._model_metrics += [build, model]

    def _samples(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._messages = counter("messages_received", "Messages received, before decoding", "source")
        self._received = counter("samples_received", "Samples received", "source")
        self._applied = counter("samples_applied", "Samples applied to a hidden state", "source")
        self._dropped = counter("samples_dropped", "Samples not applied, by reason", "source", "reason")
        skipped = counter(
            "dead_letters_skipped", "Rejected messages that are not in the dead-letter file, by reason", "reason"
        )
        self._skipped = {reason: skipped.labels(reason.text) for reason in SkipReason}
        self._joined = counter("records_joined", "Records of single channels joined to samples", "source")
        self._missing = counter("device_seq_missing", "Samples missing by the device's own counter", "source")
        self._last_sample = gauge(
            "last_sample_timestamp_seconds", "Event time of the newest applied sample, Unix time", "source"
        )
        self._imputed = counter("steps_imputed", "Steps inserted for gaps, and samples with an imputed channel")
        resets = counter("stream_resets", "Hidden states reset to the initial state, by reason", "reason")
        self._resets = {reason: resets.labels(reason.text) for reason in ResetReason if reason}
        self._streams = gauge("streams", "Streams with a state in memory")
        self._idle = gauge("streams_idle", "Streams without a sample for longer than the idle timeout")
        self._paused = gauge("streams_paused", "Streams paused by a command")
        self._timeouts = counter("stream_timeouts", "Times a stream became idle")
        self._labelled = counter("labelled_samples", "Classified samples with a known true class")
        self._correct = counter("labelled_samples_correct", "Classified samples whose class was correct")
        self._alarms = counter("alarms", "Outputs that were an alarm")

    def _delivery(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._connected = gauge("source_connected", "1 while the port is open or the broker connected", "source")
        self._queue = gauge("source_queue_messages", "Messages waiting to be processed", "source")
        self._queue_bytes = gauge("source_queue_bytes", "Bytes waiting to be processed", "source")
        self._reconnects = counter("source_reconnects", "Connections of a source lost and restored", "source")
        self._sessions = counter(
            "source_sessions_lost", "Sessions discarded by a broker; messages may be lost", "source"
        )
        self._qos0 = counter("source_qos0_messages", "Messages received at QoS 0; a crash loses them", "source")
        self._redelivered = counter("source_redelivered", "Messages delivered again and skipped", "source")
        self._outputs = counter("outputs", "Outputs written to a sink", "sink")
        self._sink_connected = gauge("sink_connected", "1 while the file is open or the server connected", "sink")
        self._sink_queue = gauge("sink_queue", "Outputs not acknowledged yet", "sink")
        self._sink_failed = counter("sink_failed", "Outputs rejected by the broker or server", "sink")
        self._sink_dropped = counter("sink_dropped", "Outputs dropped because the queue was full", "sink")
        self._sink_reconnects = counter("sink_reconnects", "Connections of a sink lost and restored", "sink")

    def _operation(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._level = gauge("interval_nominal_coverage_ratio", "Nominal coverage of the intervals")
        self._loop = gauge("loop_last_timestamp_seconds", "Last iteration of the daemon's loop, Unix time")
        self._commits = counter("commits", "Commits: processed samples are durable and acknowledged")
        self._store_up = gauge("state_store_up", "1 while states are stored, 0 without a store or after it failed")
        self._disk = counter(
            "disk_written_bytes", "Bytes written to disks: the states, or all others such as outputs", "part"
        )
        self._damaged = counter("states_damaged", "Stored states that could not be used")
        self._evicted = counter("streams_evicted", "Streams evicted from memory to the store")
        self._restored = counter("streams_restored", "Evicted streams loaded again")
        commands = counter("commands", "Commands received, by action and result", "action", "result")
        self._commands = {
            (action, ok): commands.labels(action, "ok" if ok else "rejected")
            for action in ("reset", "pause", "resume", "export", "import", "list", "forget", "unknown")
            for ok in (True, False)
        }
        reloads = counter("reloads", "Reloads of the configuration, by result", "result")
        self._reloads = {True: reloads.labels("ok"), False: reloads.labels("rejected")}
        self._reload_ok = gauge("config_last_reload_successful", "1 if the last reload was applied, 0 if rejected")
        self._reload_time = gauge(
            "config_last_reload_success_timestamp_seconds", "Last applied configuration, Unix time"
        )

    def _latencies(self) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{PREFIX}_{name}_seconds", text, registry=self.registry, buckets=buckets)

        self._inference = histogram("inference_duration", "Duration of one engine call", _STEP_BUCKETS)
        self._batch = histogram("batch_duration", "Duration of a batch, bytes to outputs", (*_STEP_BUCKETS, 0.5, 1.0))
        self._end_to_end = histogram(
            "end_to_end_latency", "Age of a batch's oldest sample when written", _END_TO_END_BUCKETS
        )
        self._commit = histogram(
            "commit_duration", "Duration of a commit, until its inputs are acknowledged", _END_TO_END_BUCKETS
        )

    def _scores(self) -> None:
        keys = ["target", "horizon"]

        def counter(name: str, text: str) -> list[list[Counter]]:
            family = self._counter(name, text, *keys)
            self._model_metrics.append(family)
            return [[family.labels(target, str(h)) for h in self._horizons] for target in self._targets]

        def gauge(name: str, text: str) -> list[list[Gauge]]:
            family = self._gauge(name, text, *keys)
            self._model_metrics.append(family)
            return [[family.labels(target, str(h)) for h in self._horizons] for target in self._targets]

        classes = self._counter("classifications", "Samples by predicted class", "class")
        self._model_metrics.append(classes)
        self._classes = [classes.labels(label) for label in self._labels]
        self._counters = {
            "truths": counter("forecasts_scored", "Forecasts scored against the true value"),
            "absolute_error": counter("forecast_absolute_error", "Sum of absolute errors, unit of the channel"),
            "persistence_error": counter(
                "persistence_absolute_error", "Sum of absolute errors of persistence (last value)"
            ),
            "covered": counter("interval_covered", "True values inside their interval"),
        }
        self._mae = gauge("forecast_mae", "Mean absolute error since start, unit of the channel")
        self._skill = gauge("forecast_skill_ratio", "1 - error / error of persistence, since start")
        self._coverage = gauge("interval_coverage_ratio", "Share of true values inside their interval, since start")

    def observe_batch(self, source: str, counts: BatchCounts, streams: int) -> None:
        """Count one processed batch; ``streams``: number of streams with a state after it."""
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
        """Count messages of a source, joined records, and samples missing by the devices' counters."""
        self._messages.labels(source).inc(messages)
        if joined:
            self._joined.labels(source).inc(joined)
        if missing:
            self._missing.labels(source).inc(missing)

    def observe_dead_letters(self, skipped: Mapping[SkipReason, int]) -> None:
        """Publish how many rejected messages are not in the dead-letter file."""
        for reason, child in self._skipped.items():
            child.inc(_increase(skipped.get(reason, 0), self._skipped_before.get(reason, 0)))
        self._skipped_before = dict(skipped)

    def observe_outputs(self, sink: str, outputs: int) -> None:
        """Count outputs written to a sink."""
        self._outputs.labels(sink).inc(outputs)

    def observe_source(self, source: str, health: SourceHealth) -> None:
        """Publish the state of a source."""
        before = self._sources.get(source, SourceHealth())
        self._sources[source] = health
        self._connected.labels(source).set(health.connected)
        self._queue.labels(source).set(health.queued)
        self._queue_bytes.labels(source).set(health.queued_bytes)
        self._reconnects.labels(source).inc(_increase(health.reconnects, before.reconnects))
        self._sessions.labels(source).inc(_increase(health.sessions_lost, before.sessions_lost))
        self._qos0.labels(source).inc(_increase(health.qos0_messages, before.qos0_messages))
        self._redelivered.labels(source).inc(_increase(health.redelivered, before.redelivered))

    def observe_sink(self, sink: str, health: SinkHealth) -> None:
        """Publish the state of a sink."""
        before, self._sinks[sink] = self._sinks[sink], health
        self._sink_connected.labels(sink).set(health.connected)
        self._sink_queue.labels(sink).set(health.queued)
        self._sink_failed.labels(sink).inc(_increase(health.failed, before.failed))
        self._sink_dropped.labels(sink).inc(_increase(health.dropped, before.dropped))
        self._sink_reconnects.labels(sink).inc(_increase(health.reconnects, before.reconnects))

    def observe_idle(self, idle: int, paused: int, timeouts: int) -> None:
        """Publish the number of idle and paused streams; ``timeouts`` of them have just become idle."""
        self._idle.set(idle)
        self._paused.set(paused)
        self._timeouts.inc(timeouts)

    def observe_level(self, level: float) -> None:
        """Publish the nominal coverage of the intervals."""
        self._level.set(level)

    def observe_loop(self, time_s: float) -> None:
        """Publish an iteration of the loop; ``time_s``: seconds since 1970."""
        self._loop.set(time_s)

    def observe_commit(self, seconds: float) -> None:
        """Count a commit and its duration."""
        self._commits.inc()
        self._commit.observe(seconds)

    def observe_store(self, up: bool, damaged: int, evicted: int, restored: int) -> None:
        """Publish the state of the store; counts since the process started."""
        self._store_up.set(up)
        for index, (family, now) in enumerate(
            ((self._damaged, damaged), (self._evicted, evicted), (self._restored, restored))
        ):
            family.inc(_increase(now, self._stored_counts[index]))
        self._stored_counts = damaged, evicted, restored

    def observe_disk(self, state: int) -> None:
        """Publish the bytes written by this process; ``state``: those of the store."""
        for part, now in (("state", state), ("other", disk_bytes() - state)):
            self._disk.labels(part).inc(max(0, now - self._disk_bytes[part]))
            self._disk_bytes[part] = now

    def observe_command(self, action: str, *, ok: bool) -> None:
        """Count a command; ``ok`` False: it was rejected."""
        self._commands[action, ok].inc()

    def observe_reload(self, time_s: float, *, ok: bool) -> None:
        """Count a reload; the start of the daemon counts as the first.  ``ok`` False: it was rejected."""
        self._reload_ok.set(ok)
        self._reloads[ok].inc()
        if ok:
            self._reload_time.set(time_s)

    def observe_inference(self, seconds: float) -> None:
        """Record the duration of one engine call."""
        self._inference.observe(seconds)

    def observe_latency(self, batch_s: float, end_to_end_s: float | None) -> None:
        """Record the duration of a batch, and the age of its oldest sample once the outputs are written."""
        self._batch.observe(batch_s)
        if end_to_end_s is not None:
            self._end_to_end.observe(end_to_end_s)

    def observe_scores(self, totals: ScoreTotals) -> None:
        """Publish the scores of the forecasts so far."""
        new = totals if self._scored is None else totals.minus(self._scored)
        self._scored = totals
        for name, children in self._counters.items():
            for counter, value in self._shown(children, getattr(new, name)):
                counter.inc(max(0.0, value))  # a negative increment would raise
        gauges = ((self._mae, totals.mae()), (self._skill, totals.skill()), (self._coverage, totals.coverage()))
        for family, values in gauges:
            for gauge, value in self._shown(family, values):
                gauge.set(value)

    def _shown(self, children: list[list[_Child]], values: F64) -> Iterator[tuple[_Child, float]]:
        """Yield each child with its value, if that is finite."""
        for row, numbers in zip(children, values, strict=True):
            for child, horizon in zip(row, self._horizons, strict=True):
                if np.isfinite(numbers[horizon - 1]):
                    yield child, float(numbers[horizon - 1])


def _increase(now: int, before: int) -> int:
    """Return the increase of a counter; one that fell was restarted at 0."""
    return now - before if now >= before else now


def shown_horizons(horizon: int) -> list[int]:
    """Return the horizons that have series: first, middle, last."""
    return sorted({1, (horizon + 1) // 2, horizon}) if horizon else []
