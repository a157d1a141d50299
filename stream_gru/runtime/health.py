"""What a daemon reports while it runs: metrics, idle streams, wrong sample rates, one line for systemd.

Nothing here changes samples.  All of it is called from the thread of the loop, but for `HealthReporter.is_idle`.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

from stream_gru.core.prediction import BatchCounts
from stream_gru.core.protocols import Sink, TracksStreams
from stream_gru.core.types import PredictionBatch, SampleBatch
from stream_gru.runtime.control.executor import PauseFilter
from stream_gru.runtime.ingest.ingest import IngestResult
from stream_gru.runtime.metrics import Metrics
from stream_gru.runtime.run_summary import RunSummary
from stream_gru.runtime.stream_checks import IdleStreams, SampleRateCheck, StreamDrops
from stream_gru.runtime.wiring import Runtime

log = logging.getLogger(__name__)

_REPORT_S = 1.0
_MAX_NAMED = 10  # streams named in the log at a time


class HealthReporter:
    """Reports on one daemon.  Each part may be absent: a replay needs none of them."""

    def __init__(
        self,
        *,
        metrics: Metrics | None = None,
        idle: IdleStreams | None = None,
        rates: SampleRateCheck | None = None,
        pause_filter: PauseFilter | None = None,
        notifier: SystemdNotifier | None = None,
    ) -> None:
        self._metrics, self._idle, self.rates, self._pause_filter = metrics, idle, rates, pause_filter
        self.notifier = notifier or SystemdNotifier({})
        self.summary, self.drops = RunSummary(), StreamDrops()
        self._reported_s = float("-inf")
        self._ticked_s = float("inf")
        self._waited_s = 0.0  # for sinks; samples waited meanwhile, so their streams were not idle
        self._status = ""

    def is_idle(self, stream: str) -> bool:
        """Whether no sample of a stream has come for the idle timeout."""
        return self._idle is not None and self._idle.is_idle(stream)

    def on_messages(self, result: IngestResult, messages: int) -> None:
        """Messages of one source were ingested."""
        if self._metrics is not None:
            self._metrics.observe_arrival(result.source, messages, result.joined, result.missing)

    def on_batch(
        self,
        source: str,
        batch: SampleBatch,
        out: PredictionBatch,
        runtime: Runtime,
        now_s: float,
        seconds: float,
        age_s: float | None,
    ) -> None:
        """One batch was processed and written, in ``seconds``; its oldest sample arrived ``age_s`` ago."""
        streams = len(runtime.pipeline.table)
        counts = BatchCounts.of(batch.received, out)
        self.summary.add(counts, seconds, streams)
        self.drops.observe(out)
        if len(out):
            self._on_outputs(out, runtime, now_s)
        if self._metrics is not None:
            self._metrics.observe_batch(source, counts, streams)
            for name in runtime.sinks:
                self._metrics.observe_outputs(name, len(out))
            self._metrics.observe_latency(seconds, age_s)

    def _on_outputs(self, out: PredictionBatch, runtime: Runtime, now_s: float) -> None:
        """Only streams of applied samples count: names in rejected samples are no streams."""
        if self._idle is not None:
            self._idle.seen([out.stream_names[i] for i in set(out.stream_index.tolist())], now_s - self._waited_s)
        for stream, period_s in self.rates.observe(out) if self.rates is not None else ():
            log.warning(
                "stream %s: expected a sample every %.3g s, as in training, got one every %.3g s; "
                "forecast horizons count samples, not seconds",
                stream,
                runtime.pipeline.manifest.period_s,
                period_s,
            )

    def on_commit(self, seconds: float) -> None:
        """A commit took so long."""
        if self._metrics is not None:
            self._metrics.observe_commit(seconds)

    def tick(self, runtime: Runtime, now_s: float, wall_s: float, *, waiting_for_sinks: bool = False) -> None:
        """Once a second: report idle streams, and the state of sources, sinks, store and scores.

        ``waiting_for_sinks``: nothing is read until a sink has room.
        """
        if waiting_for_sinks:
            self._waited_s += max(0.0, now_s - self._ticked_s)
        self._ticked_s = now_s
        if now_s - self._reported_s < _REPORT_S:
            return
        self._reported_s = now_s
        timeouts = 0 if waiting_for_sinks else self._report_idle(now_s - self._waited_s, runtime.sinks)
        idle = 0 if self._idle is None else self._idle.count
        paused = 0 if self._pause_filter is None else self._pause_filter.count(runtime.pipeline.streams)
        self._notify_systemd(f"{len(runtime.pipeline.table)} streams, {idle} idle, {paused} paused")
        if self._metrics is None:
            return
        self._metrics.observe_loop(wall_s)
        counts = runtime.checkpointer.counts
        self._metrics.observe_store(runtime.checkpointer.healthy, counts.damaged, counts.evicted, counts.restored)
        store = runtime.checkpointer.store
        self._metrics.observe_disk(0 if store is None else store.disk_bytes)
        self._metrics.observe_idle(idle, paused, timeouts)
        self._metrics.observe_dead_letters(runtime.rejects.skipped)
        for one in runtime.inputs:
            self._metrics.observe_source(one.name, one.source.health())
        for name, sink in runtime.sinks.items():
            self._metrics.observe_sink(name, sink.health())
        self.publish_scores(runtime)

    def publish_scores(self, runtime: Runtime) -> None:
        """Publish the forecasts' scores so far."""
        totals = runtime.pipeline.scores()
        if totals is not None and self._metrics is not None:
            self._metrics.observe_scores(totals)

    def _notify_systemd(self, status: str) -> None:
        if status != self._status:
            self.notifier.status(status)
            self._status = status

    def _report_idle(self, now_s: float, sinks: Mapping[str, Sink]) -> int:
        """Report streams that became idle or came back, to the log and the sinks; return how many became idle."""
        if self._idle is None:
            return 0
        became_idle, resumed = self._idle.check(now_s)
        for streams, online, words in ((became_idle, False, "is idle"), (resumed, True, "sends again")):
            for stream in streams[:_MAX_NAMED]:
                log.warning("stream %s %s", stream, words)
            if len(streams) > _MAX_NAMED:
                log.warning("%d more streams: each %s", len(streams) - _MAX_NAMED, words)
            for stream in streams:
                for sink in sinks.values():
                    if isinstance(sink, TracksStreams):
                        sink.stream_status(stream, online)
        return len(became_idle)


log = logging.getLogger(__name__)

_US_PER_S = 1_000_000


def sd_notify(address: str, text: str) -> bool:
    """Send ``text`` to the datagram socket at ``address`` (``@``: abstract name); return whether it was sent."""
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.connect("\0" + address[1:] if address[0] == "@" else address)
            sender.send(text.encode("utf-8", "replace"))
    except (OSError, ValueError) as error:  # ValueError: a NUL inside a path
        log.debug("systemd: cannot send %r: %s", text, error)
        return False
    return True


class SystemdNotifier:
    """Sends this process' state to the manager named by ``environ``; does nothing without one.

    ``clock``: monotonic seconds; `reloading` needs CLOCK_MONOTONIC.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._clock = clock
        self._every_s = _watchdog_s(environ) / 3
        self._due = float("-inf")

    def ready(self) -> None:
        """Start or reload is complete."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has started; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(self._clock() * _US_PER_S)}")

    def stopping(self) -> None:
        """The daemon shuts down."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show ``text`` in ``systemctl status``."""
        self._send("STATUS=" + " ".join(text.split()))  # a newline would start another assignment

    def heartbeat(self) -> None:
        """Feed the watchdog, at most three times per timeout; called in each iteration of the loop."""
        if not self._every_s:
            return
        now = self._clock()
        if now >= self._due:
            self._due = now + self._every_s
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if self._address:
            sd_notify(self._address, text)


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return the watchdog's timeout in seconds; 0 if it does not watch this process."""
    timeout, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (timeout.isascii() and timeout.isdigit()) or (pid and pid != str(os.getpid())):
        return 0.0
    return int(timeout[:20]) / _US_PER_S  # at most the digits of 64 bits
