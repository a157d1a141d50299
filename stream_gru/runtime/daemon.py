"""The daemon: the only loop.

    poll ─▶ decode ─▶ ingest ─▶ pipeline ─▶ sinks ─▶ commit            one turn, in this order, in one thread
                      admission             encoded    flush, transaction,
                      first                 once       acknowledge

`run`, `replay` and `demo` are all this loop; they differ in sources and sinks.  A stop (`Daemon.stop`, from a signal
handler) lets the current batch finish; then everything is flushed, acknowledged and closed.

A commit (`runtime.checkpoint`) makes durable what was processed, releases the outputs and acknowledges the inputs.  It
waits for the disk only: outputs that another machine has not acknowledged stay in the store until it has.

Decision: a batch that was read is always written, to all sinks.  While a sink has no room nothing is read, so the
sources make their senders wait; there is never half a batch to undo.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from stream_gru.core.errors import EndOfInput
from stream_gru.core.types import NS_PER_S, PredictionBatch, ResetReason, SampleBatch
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.control.executor import CommandExecutor
from stream_gru.runtime.health import HealthReporter
from stream_gru.runtime.ingest.ingest import group_by_source
from stream_gru.runtime.replay_pacing import ReplayPacer
from stream_gru.runtime.run_summary import RunSummary
from stream_gru.runtime.wiring import Input, Runtime

log = logging.getLogger(__name__)

_POLL_S = 0.2
_FULL_S = 0.02  # how soon a sink without room is asked again
_DRAIN_S = 3.0  # how long the end waits for sinks to deliver
_DRAIN_STEP_S = 0.05


class Daemon:
    """Drives ``runtime``, which a reload replaces as a whole between two batches.

    ``commands``: carries out commands; ``health``: reports; ``broadcast``: called with each batch of outputs, after the
    sinks; ``wakeup``: set by sources that have something, where there are several; ``clock``: monotonic seconds;
    ``wall_ns``: nanoseconds since 1970; ``wait(s)`` sleeps and returns True when `stop` was called meanwhile.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        commands: CommandExecutor | None = None,
        health: HealthReporter | None = None,
        broadcast: Callable[[PredictionBatch], None] | None = None,
        wakeup: threading.Event | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self.runtime = runtime
        self.health = health or HealthReporter()
        self._commands, self._broadcast = commands, broadcast
        self._wakeup = wakeup or threading.Event()
        self._clock, self._wall_ns = clock, wall_ns
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._rest = wait or threading.Event().wait
        self._pending_call: Callable[[], None] | None = None
        self._committed_s = float("-inf")
        self._uncommitted = 0
        self._began_s = 0.0
        self._turn = 0
        self.ready = False
        self.last_turn_s = clock()

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of the current runtime."""
        return self.runtime.pipeline

    @property
    def summary(self) -> RunSummary:
        """Counts and latencies since the start."""
        return self.health.summary

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Finish the current batch and end; safe from a signal handler."""
        self._stopping.set()
        self._wakeup.set()

    def call_soon(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once, by the loop, between two batches; safe from a signal handler."""
        self._pending_call = call
        self._wakeup.set()

    def heartbeat(self) -> None:
        """Show the watchdog that the loop makes progress, though it may be waiting."""
        self.last_turn_s = self._clock()
        self.health.notifier.heartbeat()

    def run(self) -> RunSummary:
        """Run to the end of the input, or until stopped.

        Raises SourceUnavailable, DataError (the input cannot be used), SinkUnavailable, StateError and StoreError; all
        parts are closed in every case.
        """
        self._began_s = self._clock()
        with ExitStack() as closing:  # closes each part, also where closing another one fails
            closing.callback(self._close_all)
            try:
                self._recover()
                self.ready = True
                self.health.notifier.ready()
                self._loop()
                self._finish()
            finally:
                self.ready = False
                self.health.notifier.stopping()
                self.summary.seconds = self._clock() - self._began_s
        return self.summary

    def _recover(self) -> None:
        runtime = self.runtime
        positions = runtime.checkpointer.recover({one.name: one.source for one in runtime.inputs}, runtime.sinks)
        for one in runtime.inputs:
            one.position = positions.get(one.name)
        self.commit()  # from here on the store knows every file that is written

    def _close_all(self) -> None:
        runtime = self.runtime
        with ExitStack() as closing:
            closing.callback(runtime.checkpointer.close)
            closing.callback(runtime.rejects.close)
            for sink in reversed(list(runtime.sinks.values())):
                closing.callback(sink.close)
            for one in runtime.inputs:
                closing.callback(one.source.close)

    # ---- one turn -------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self.heartbeat()
            self._run_pending()
            active = [one for one in self.runtime.inputs if not one.ended]
            if not active:
                return
            self._wakeup.clear()
            if all(sink.ready() for sink in self.runtime.sinks.values()):
                self._poll_sources(active)
                self._maintain()
            else:
                self._wait_for_sinks()

    def _run_pending(self) -> None:
        if self._pending_call is not None:
            call, self._pending_call = self._pending_call, None
            call()
        if self._commands is not None:
            self._commands.run_pending(self.commit)

    def _poll_sources(self, active: Sequence[Input]) -> None:
        """Poll each source once, the first one in rotation; wait when none has anything."""
        timeout_s = _POLL_S
        if self._uncommitted:
            due_s = self._committed_s + self.runtime.commit_interval_s
            timeout_s = max(0.0, min(_POLL_S, due_s - self._clock()))
        alone = len(active) == 1
        self._turn += 1
        first = self._turn % len(active)
        idle = True
        for one in (*active[first:], *active[:first]):
            if self._stopping.is_set():
                return
            idle = not self._read(one, timeout_s if alone else 0.0) and idle
        if idle and not alone and not self._stopping.is_set():
            self._wakeup.wait(timeout_s)

    def _wait_for_sinks(self) -> None:
        """A sink has no room: commit, so that it may send what it holds, and wait a little."""
        if self._uncommitted:
            self.commit()
        self.health.tick(self.runtime, self._clock(), self._wall_ns() / NS_PER_S, waiting_for_sinks=True)
        self._wait(_FULL_S)

    def _read(self, one: Input, timeout_s: float) -> bool:
        """Process what an input has; return whether there was anything."""
        runtime = self.runtime
        try:
            raw = one.source.poll(runtime.batch_rows, timeout_s)
        except EndOfInput:
            one.ended = True
            return False
        if not raw:
            return False
        started_s = self._clock()
        if one.speed and one.pacer is None:
            one.pacer = ReplayPacer(one.speed, self._clock, self._wait)
        for ingest, messages in group_by_source(raw, one.ingests):
            decoded = ingest.decode(messages)
            runtime.rejects.report(ingest.name, decoded.rejected)
            result = ingest.apply(decoded)
            self.health.on_messages(result, len(messages))
            if one.pacer is None:
                self._process(ingest.name, result.batch, messages[0].arrival_ns, started_s)
                continue
            for part in self._paced(one.pacer, result.batch):
                self._process(ingest.name, part, messages[0].arrival_ns, self._clock())
                self._maintain(may_commit=runtime.checkpointer.store is None)  # a paced block may take minutes
        if raw[-1].position is not None:
            one.processed(raw[-1].position, len(raw))
        return True

    def _paced(self, pacer: ReplayPacer, batch: SampleBatch) -> Iterator[SampleBatch]:
        """The rows of a batch at the speed of their recording."""
        done = 0
        for part in pacer.parts(batch):
            yield part
            done += len(part)
        if done < len(batch) and self.runtime.checkpointer.store is not None:
            # A stop was asked for; but the position that is committed is behind the whole block.
            yield batch.take(slice(done, None)) if done else batch

    def _process(self, source: str, batch: SampleBatch, arrival_ns: int, started_s: float) -> None:
        runtime = self.runtime
        out = runtime.pipeline.process(batch)
        for sink in runtime.sinks.values():
            sink.write(out)
        if self._broadcast is not None:
            self._broadcast(out)
        self._uncommitted += batch.received
        now_s = self._clock()
        age_s = (self._wall_ns() - arrival_ns) / NS_PER_S if arrival_ns else None
        self.health.on_batch(source, batch, out, runtime, now_s, now_s - started_s, age_s)
        if out.resets and log.isEnabledFor(logging.DEBUG):
            _log_resets(out)
        if self.summary.first_output_s is None and self.summary.applied:
            self.summary.first_output_s = now_s - self._began_s

    # ---- between turns --------------------------------------------------------------------------------------------

    def _maintain(self, *, may_commit: bool = True) -> None:
        """Commit when it is due, and report.

        ``may_commit`` False: within a block that was read, for which a commit would have no position.
        """
        now_s = self._clock()
        if may_commit and self._commit_is_due(now_s):
            self.commit()
        self.health.tick(self.runtime, now_s, self._wall_ns() / NS_PER_S)

    def _commit_is_due(self, now_s: float) -> bool:
        runtime = self.runtime
        if self._uncommitted >= runtime.commit_every or now_s - self._committed_s >= runtime.commit_interval_s:
            return True
        return any(one.max_inflight and 2 * one.unacknowledged >= one.max_inflight for one in runtime.inputs)

    def commit(self) -> None:
        """Make all that was processed durable, release its outputs and acknowledge its inputs.

        Raises StoreError, SinkUnavailable: then nothing was acknowledged.
        """
        started_s, runtime = self._clock(), self.runtime
        runtime.checkpointer.commit({one.name: (one.source, one.position) for one in runtime.inputs}, runtime.sinks)
        for one in runtime.inputs:
            one.unacknowledged = 0
        self._uncommitted = 0
        self._committed_s = self._clock()
        self.health.on_commit(self._committed_s - started_s)

    # ---- the end --------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Flush joined channels, publish scores, and commit; give sinks time to deliver before the last commit."""
        runtime = self.runtime
        joining = [one for one in runtime.inputs if any(ingest.joins for ingest in one.ingests.values())]
        if all(one.ended for one in joining):  # they share the joiner
            for one in joining:
                for ingest in one.ingests.values():
                    result = ingest.flush()
                    if result is not None and result.batch.received:
                        self._process(ingest.name, result.batch, 0, self._clock())
        self.health.publish_scores(runtime)
        self.commit()
        self._drain()
        with ExitStack() as closing:
            for sink in reversed(list(runtime.sinks.values())):
                closing.callback(sink.close)
        self.commit()  # outputs that were acknowledged since need not be sent again
        runtime.checkpointer.mark_clean_shutdown()
        undelivered = sum(sink.health().queued for sink in runtime.sinks.values())
        if undelivered:
            lost = runtime.checkpointer.store is None
            fate = "lost: run.state_dir is not set" if lost else "sent at the next start"
            log.warning("%d outputs were not acknowledged; they are %s", undelivered, fate)

    def _drain(self) -> None:
        """Give sinks some time to deliver what was committed."""
        end_s = self._clock() + _DRAIN_S
        while any(sink.health().queued for sink in self.runtime.sinks.values()) and self._clock() < end_s:
            self.heartbeat()
            self._rest(_DRAIN_STEP_S)


def _log_resets(out: PredictionBatch) -> None:
    for row in out.reset.nonzero()[0]:
        stream = out.stream_names[out.stream_index[row]]
        log.debug("reset %s of stream %s", ResetReason(int(out.reset[row])).text, stream)
