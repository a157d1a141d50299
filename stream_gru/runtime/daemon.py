"""The daemon: the only loop.  Poll, take in, process, write, count, commit; until the input ends or somebody says stop.

`run`, `replay` and `demo` are all this loop; they differ in sources and sinks.  A stop (`Daemon.stop`, from a signal
handler) lets the batch in hand finish, then everything is flushed, acknowledged and closed.

What was processed is made durable by a commit (see `runtime.checkpoint`), which releases the outputs and acknowledges
the inputs.  It waits for a disk and for nobody else: what another machine has not confirmed is kept until it has.

Decision: a batch that was read is always written, to all sinks.  While a sink has no room nothing is read, and the
sources make their other side wait; so there is never half a batch to be taken back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from stream_gru.core.errors import EndOfInput
from stream_gru.core.protocols import Sink, Source
from stream_gru.core.types import NS_PER_S, Position, PredictionBatch, ResetReason, SampleBatch
from stream_gru.pipeline.batch_counts import BatchCounts
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.dead_letter.reporter import RejectReporter
from stream_gru.runtime.housekeeping import Caretaker
from stream_gru.runtime.ingest.ingest import Arrived, Intake, by_source
from stream_gru.runtime.metrics import Metrics
from stream_gru.runtime.replay_pacing import ReplayPacer
from stream_gru.runtime.run_summary import RunSummary

log = logging.getLogger(__name__)

_POLL_S = 0.2
_FULL_S = 0.02  # how soon a sink without room is asked again
_SCORES_S = 1.0
_DRAIN_S = 3.0  # longest wait for sinks to confirm what was written before the end
_DRAIN_STEP_S = 0.05


@dataclass(slots=True)
class Input:
    """A source and the intakes of its messages (several only for a recording of several sources).

    ``speed``: 0 as fast as possible, else a multiple of the recording's own speed; ``window``: how many messages the
    other side sends before it waits for an acknowledgement, 0 for no such limit; ``position``: how far it was
    processed.
    """

    name: str
    source: Source
    intakes: Mapping[str, Intake]
    speed: float = 0.0
    window: int = 0
    position: Position | None = None
    unacknowledged: int = 0
    ended: bool = False
    pacer: ReplayPacer | None = None

    def processed(self, position: Position, messages: int) -> None:
        """All up to here was read and processed."""
        self.position = position
        self.unacknowledged += messages


class Daemon:
    """Moves samples from ``inputs`` through ``pipeline`` to ``sinks``, by name.

    ``keeper`` makes commits durable; ``commit_every``, ``commit_interval_s``: how much is processed before one;
    ``broadcast`` is called with each batch of outputs, after the sinks;
    ``bell`` is rung by sources that have something, where there are several; ``clock``: monotonic seconds;
    ``wall_ns``: nanoseconds since 1970; ``wait(s)`` sleeps and returns True when somebody said stop (by default it
    waits for `stop`).
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        pipeline: Pipeline,
        sinks: Mapping[str, Sink],
        *,
        keeper: Checkpointer | None = None,
        caretaker: Caretaker | None = None,
        metrics: Metrics | None = None,
        broadcast: Callable[[PredictionBatch], None] | None = None,
        bell: threading.Event | None = None,
        batch_rows: int = 1024,
        commit_every: int = 1_000_000,
        commit_interval_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self.inputs, self.pipeline, self.sinks = list(inputs), pipeline, dict(sinks)
        self.keeper = keeper or Checkpointer(pipeline)
        self.reject_reporter = RejectReporter()
        self.caretaker = caretaker or Caretaker(pipeline)
        self.batch_rows, self.commit_every, self.commit_interval_s = batch_rows, commit_every, commit_interval_s
        self._metrics, self._bell, self._broadcast = metrics, bell or threading.Event(), broadcast
        self._clock, self._wall_ns = clock, wall_ns
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._rest = wait or threading.Event().wait
        self._change: Callable[[], None] | None = None
        self._committed = self._scored = float("-inf")
        self._uncommitted = 0
        self._begin = 0.0
        self._turn = 0
        self.summary = RunSummary()
        self.ready = False
        self.last_turn_s = clock()

    def stop(self) -> None:
        """Ask the loop to finish the batch in hand and end; safe from a signal handler."""
        self._stopping.set()
        self._bell.set()

    @property
    def stopped(self) -> bool:
        """Whether somebody asked the loop to end."""
        return self._stopping.is_set()

    def alive(self) -> None:
        """Say that the loop goes on, though it may be waiting for somebody."""
        self.last_turn_s = self._clock()
        self.caretaker.notifier.alive()

    def between_batches(self, change: Callable[[], None]) -> None:
        """Have ``change`` called once, by the loop, when no batch is in hand; safe from a signal handler."""
        self._change = change
        self._bell.set()

    def run(self) -> RunSummary:
        """Run to the end of the input, or until stopped.

        Raises SourceUnavailable, DataError (the input cannot be used), SinkUnavailable, StateError and StoreError; all
        are closed always.
        """
        self._begin = self._clock()
        with ExitStack() as closing:  # each is closed, also where closing another one fails
            closing.callback(self._close_all)
            try:
                positions = self.keeper.recover({one.name: one.source for one in self.inputs}, self.sinks)
                for one in self.inputs:
                    one.position = positions.get(one.name)
                self.commit()  # from here on the store knows of every file that is written
                self.ready = True
                self.caretaker.notifier.ready()
                self._loop()
                self._finish()
            finally:
                self.ready = False
                self.caretaker.notifier.stopping()
                self.summary.seconds = self._clock() - self._begin
        return self.summary

    def _close_all(self) -> None:
        with ExitStack() as closing:
            closing.callback(self.keeper.close)
            closing.callback(self.reject_reporter.close)
            for sink in reversed(self.sinks.values()):
                closing.callback(sink.close)
            for one in self.inputs:
                closing.callback(one.source.close)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self.alive()
            self._make_change()
            self.caretaker.obey(self.commit)
            live = [one for one in self.inputs if not one.ended]
            if not live:
                return
            self._bell.clear()
            if all(sink.ready() for sink in self.sinks.values()):
                self._turn_to(live)
                self._keep_up()
            else:
                self._hold()

    def _turn_to(self, live: Sequence[Input]) -> None:
        """Let each source have its turn, and wait when all are quiet."""
        patience_s = _POLL_S
        if self._uncommitted:
            patience_s = max(0.0, min(_POLL_S, self._committed + self.commit_interval_s - self._clock()))
        alone = len(live) == 1
        self._turn += 1
        first = self._turn % len(live)  # each source is the first one in its turn
        quiet = True
        for one in (*live[first:], *live[:first]):
            if self._stopping.is_set():
                return
            quiet = not self._read(one, patience_s if alone else 0.0) and quiet
        if quiet and not alone and not self._stopping.is_set():
            self._bell.wait(patience_s)

    def _hold(self) -> None:
        """A sink has no room: commit, so that it may send what it has, and wait a little."""
        if self._uncommitted:
            self.commit()
        self._look_around(self._clock(), held_up=True)
        self._wait(_FULL_S)

    def _read(self, one: Input, timeout_s: float) -> bool:
        """Process what an input has; return whether there was something."""
        try:
            raw = one.source.poll(self.batch_rows, timeout_s)
        except EndOfInput:
            one.ended = True
            return False
        if not raw:
            return False
        started = self._clock()
        if one.speed and one.pacer is None:
            one.pacer = ReplayPacer(one.speed, self._clock, self._wait)
        for intake, messages in by_source(raw, one.intakes):
            decoded = intake.decode(messages)
            self.reject_reporter.report(intake.name, decoded.rejected)
            arrived = intake.take(self.keeper.load_streams(decoded))
            self._observe_arrival(arrived, len(messages))
            for part in self._parts(one, arrived.batch):
                self._handle(intake.name, part, messages[0].arrival_ns, self._clock() if one.pacer else started)
                if one.pacer is not None:
                    self._keep_up(whole=False)  # a paced block may take minutes
        if raw[-1].position is not None:
            one.processed(raw[-1].position, len(raw))
        return True

    def _parts(self, one: Input, batch: SampleBatch) -> Iterator[SampleBatch]:
        """A batch, at the speed of its recording where that is wanted."""
        if one.pacer is None:
            yield batch
            return
        done = 0
        for part in one.pacer.parts(batch):
            yield part
            done += len(part)
        if done < len(batch) and self.keeper.store is not None:
            # We are to stop; but what is committed is behind the whole of what was read.
            yield batch.take(slice(done, None)) if done else batch

    def _observe_arrival(self, arrived: Arrived, messages: int) -> None:
        if self._metrics is not None:
            self._metrics.observe_arrival(arrived.source, messages, arrived.joined, arrived.missing)

    def _handle(self, source: str, batch: SampleBatch, arrival_ns: int, started: float) -> None:
        out = self.pipeline.process(batch)
        for sink in self.sinks.values():
            sink.write(out)
        if self._broadcast is not None:
            self._broadcast(out)
        now = self._clock()
        seconds, streams = now - started, len(self.pipeline.table)
        counts = BatchCounts.of(batch.received, out)
        self.summary.add(counts, seconds, streams)
        self._uncommitted += batch.received
        if len(out):
            self.caretaker.seen(out, now)
        if self._metrics is not None:
            self._metrics.observe_batch(source, counts, streams)
            for name in self.sinks:
                self._metrics.observe_outputs(name, len(out))
            age_s = (self._wall_ns() - arrival_ns) / NS_PER_S if arrival_ns else None
            self._metrics.observe_latency(seconds, age_s)
        if out.resets and log.isEnabledFor(logging.DEBUG):
            _log_resets(out)
        if self.summary.first_output_s is None and self.summary.applied:
            self.summary.first_output_s = now - self._begin

    def _make_change(self) -> None:
        if self._change is not None:
            change, self._change = self._change, None
            change()

    def _keep_up(self, *, whole: bool = True) -> None:
        """What happens now and then: commit, look around, publish scores.

        ``whole`` False: in the middle of a block that was read, where a commit would have no position.
        """
        now = self._clock()
        if (whole or self.keeper.store is None) and self._commit_is_due(now):
            self.commit()
        self._look_around(now)
        if self._metrics is not None and now - self._scored >= _SCORES_S:
            self._publish_scores()

    def _look_around(self, now: float, *, held_up: bool = False) -> None:
        sources = {one.name: one.source for one in self.inputs}
        self.caretaker.look_around(now, self._wall_ns() / NS_PER_S, sources, self.sinks, held_up=held_up)

    def _commit_is_due(self, now: float) -> bool:
        if self._uncommitted >= self.commit_every or now - self._committed >= self.commit_interval_s:
            return True
        return any(one.window and 2 * one.unacknowledged >= one.window for one in self.inputs)

    def commit(self) -> None:
        """Make all that was processed durable, release its outputs and acknowledge its inputs.

        Raises StoreError, SinkUnavailable: then nothing was acknowledged.
        """
        begun = self._clock()
        self.keeper.commit({one.name: (one.source, one.position) for one in self.inputs}, self.sinks)
        for one in self.inputs:
            one.unacknowledged = 0
        self._uncommitted = 0
        self._committed = self._clock()
        if self._metrics is not None:
            self._metrics.observe_commit(self._committed - begun)

    def _finish(self) -> None:
        """At the end: what waits for other channels, scores, and the last commits, with some time for sinks between."""
        waiting = [one for one in self.inputs if any(intake.assembles for intake in one.intakes.values())]
        if all(one.ended for one in waiting):  # they share what waits for other channels
            for one in waiting:
                for intake in one.intakes.values():
                    arrived = intake.finish()
                    if arrived is not None and arrived.batch.received:
                        self._handle(intake.name, arrived.batch, 0, self._clock())
        if self._metrics is not None:
            self._publish_scores()
        self.commit()
        self._drain()
        with ExitStack() as closing:
            for sink in reversed(self.sinks.values()):
                closing.callback(sink.close)
        self.commit()  # outputs that were confirmed since need not be sent again
        self.keeper.mark_clean_shutdown()
        left = sum(sink.health().queued for sink in self.sinks.values())
        if left:
            fate = "they are lost" if self.keeper.store is None else "they are sent at the next start"
            log.warning("%d outputs were not confirmed: %s", left, fate)

    def _drain(self) -> None:
        """Give sinks some time to have confirmed what was committed."""
        end = self._clock() + _DRAIN_S
        while any(sink.health().queued for sink in self.sinks.values()) and self._clock() < end:
            self.alive()
            self._rest(_DRAIN_STEP_S)

    def _publish_scores(self) -> None:
        totals = self.pipeline.scores()
        if totals is not None and self._metrics is not None:
            self._metrics.observe_scores(totals)
        self._scored = self._clock()


def _log_resets(out: PredictionBatch) -> None:
    for row in out.reset.nonzero()[0]:
        log.debug(
            "reset %s of stream %s", ResetReason(int(out.reset[row])).text, out.stream_names[out.stream_index[row]]
        )
