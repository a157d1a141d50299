"""The daemon: the only loop.

    poll ─▶ decode ─▶ ingest ─▶ pipeline ─▶ sinks ─▶ commit            one turn, in this order, in one thread
            a group   admission  a slice    encoded   flush, transaction,
                      first      of rows    once      acknowledge

`run`, `replay` and `demo` are all this loop; they differ in sources and sinks.  A stop (`Daemon.stop`, from a signal
handler) lets what was read be processed; then everything is flushed, acknowledged and closed.

A commit (`runtime.checkpoint`) makes durable what was processed, releases the outputs and acknowledges the inputs.  It
waits for the disk only: outputs that another machine has not acknowledged stay in the store until it has.

Decision: a batch is always written to all sinks.  While a sink has no room nothing is read or processed, so the sources
make their senders wait; there is never half a batch to undo.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from stream_gru.core.errors import EndOfInput
from stream_gru.core.types import NS_PER_S, PredictionBatch, RawMessage, ResetReason, SampleBatch
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.control.executor import CommandExecutor
from stream_gru.runtime.crash_guard import CrashGuard
from stream_gru.runtime.health import HealthReporter
from stream_gru.runtime.ingest.ingest import Ingest, group_by_source
from stream_gru.runtime.pieces import ReplayPacer, groups, slices
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
        store = runtime.checkpointer.store
        self._guard = CrashGuard(None if store is None else store.path.parent)
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
        store = runtime.checkpointer.store
        self._guard.open(clean=store is None or store.clean_shutdown)
        self.commit()  # from here on the store knows every file that is written

    def _close_all(self) -> None:
        runtime = self.runtime
        with ExitStack() as closing:
            closing.callback(runtime.checkpointer.close)
            closing.callback(runtime.rejects.close)
            closing.callback(self._guard.close)
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
            self._finish_work()
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
        """Process one piece of what an input has; return whether there was anything."""
        if self._step(one):
            return True
        try:
            raw = one.source.poll(self.runtime.batch_rows, timeout_s)
        except EndOfInput:
            one.ended = True
            return False
        if not raw:
            return False
        one.work = self._work(one, raw)
        return self._step(one)

    def _step(self, one: Input) -> bool:
        """Process the next piece of what was read; return whether there was one."""
        if one.work is None:
            return False
        try:
            next(one.work)
        except StopIteration:
            one.work = None
            return False
        return True

    def _finish_work(self) -> None:
        """Process all that was read."""
        for one in self.runtime.inputs:
            while self._step(one):
                self.heartbeat()

    def _work(self, one: Input, raw: Sequence[RawMessage]) -> Iterator[None]:
        """Process messages piece by piece; after each piece the position is exact, so a commit may follow."""
        if one.speed and one.pacer is None:
            one.pacer = ReplayPacer(one.speed, self._clock, self._wait)

        def alone(message: RawMessage) -> bool:
            return self._guard.is_suspect(message) or (one.progress is not None and one.progress.is_next(message))

        for ingest, messages in group_by_source(raw, one.ingests):
            for group in groups(messages, alone):
                yield from self._process_group(one, ingest, self._guard.screened(group))

    def _process_group(self, one: Input, ingest: Ingest, messages: Sequence[RawMessage]) -> Iterator[None]:
        """Decode messages and process their rows; yields inside of a single message, and at the end."""
        started_s, runtime, arrival_ns = self._clock(), self.runtime, messages[0].arrival_ns
        progress = one.progress if len(messages) == 1 else None
        with self._guard.processing(messages):
            decoded = ingest.decode(messages)
            done = 0 if one.progress is None else one.progress.rows_done(messages)
            if done:
                decoded = decoded.take(slice(done, None))
            runtime.rejects.report(ingest.name, decoded.rejected, ingest.explain)
            first, *more = slices(decoded, runtime.batch_rows)
            self._process_slice(one, ingest, first, len(messages), arrival_ns, started_s)
        for part in more:
            done += runtime.batch_rows
            if progress is None:
                self.heartbeat()
            else:
                progress.note(messages[0], done)
                yield
            with self._guard.processing(messages):
                self._process_slice(one, ingest, part, 0, arrival_ns, self._clock())
        if progress is not None:
            progress.finish(messages[0])
        if messages[-1].position is not None:
            one.processed(messages[-1].position, len(messages))
        yield

    def _process_slice(
        self, one: Input, ingest: Ingest, part: SampleBatch, count: int, arrival_ns: int, started_s: float
    ) -> None:
        """Process some rows of messages, those of a paced recording when they are due."""
        result = ingest.apply(part)
        self.health.on_messages(result, count)
        if one.pacer is None:
            self._process(ingest.name, result.batch, arrival_ns, started_s)
            return
        for due in self._paced(one.pacer, result.batch):
            self._process(ingest.name, due, arrival_ns, self._clock())
            # A paced block may take minutes.
            self._maintain(may_commit=self.runtime.checkpointer.store is None)

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
        runtime.rejects.report_drops(source, out.drops, runtime.pipeline.manifest.channels)
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
        """Process what was read, flush joined channels, commit; give sinks time to deliver before the last commit."""
        self._finish_work()
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
