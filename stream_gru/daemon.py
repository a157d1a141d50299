"""The daemon: the only loop.  Poll, take in, process, write, count, commit; until the input ends or somebody says stop.

`run`, `replay` and `demo` are all this loop; they differ in sources and sinks.  A stop (`Daemon.stop`, from a signal
handler) lets the batch in hand finish, then everything is flushed, acknowledged and closed.

What was read is acknowledged by a commit: first every sink confirms what it was given, then every source is told how
far it was processed.

Decision: a commit does not wait.  What a sink has not confirmed is asked for again at the next turn while samples flow
on; waiting for a broker that is never idle would stop everything for as long as it is busy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from stream_gru.caretaker import Caretaker
from stream_gru.errors import EndOfInput, SinkPending
from stream_gru.intake import Arrived, Intake, by_source
from stream_gru.metrics import Metrics
from stream_gru.pacing import Pacer
from stream_gru.pipeline import Pipeline
from stream_gru.protocols import Sink, Source
from stream_gru.summary import Summary
from stream_gru.types import NS_PER_S, Mask, Position, PredictionBatch, ResetReason, SampleBatch

log = logging.getLogger(__name__)

_POLL_S = 0.2
_CONFIRM_S = 0.005  # how soon sinks are asked again whether they have confirmed
_SCORES_S = 1.0
_DRAIN_S = 3.0  # longest wait for sinks to confirm what was written before the end
_DRAIN_STEP_S = 0.05


class _Read(NamedTuple):
    """How far an input was read, and the number of the last record of it."""

    position: Position
    records: int


@dataclass(slots=True)
class Input:
    """A source and the intakes of its messages (several only for a recording of several sources).

    ``speed``: 0 as fast as possible, else a multiple of the recording's own speed; ``window``: how many messages the
    other side sends before it waits for an acknowledgement, 0 for no such limit.
    """

    name: str
    source: Source
    intakes: Mapping[str, Intake]
    speed: float = 0.0
    window: int = 0
    position: Position | None = None
    committed: Position | None = None
    unacknowledged: int = 0
    ended: bool = False
    pacer: Pacer | None = None
    read: deque[_Read] = field(default_factory=deque)

    def processed(self, position: Position, messages: int) -> None:
        """All up to here was read; it counts as processed when none of its records waits for other channels."""
        self.unacknowledged += messages
        self.read.append(_Read(position, max(intake.records for intake in self.intakes.values())))

    def settle_read(self) -> None:
        """Move the position on to where nothing waits any more."""
        pending = [intake.oldest_pending for intake in self.intakes.values()]
        oldest = min((number for number in pending if number is not None), default=None)
        while self.read and (oldest is None or self.read[0].records < oldest):
            self.position = self.read.popleft().position


class _Commit(NamedTuple):
    """A commit under way: when it began, sinks that have not confirmed, how far each input was processed."""

    begun: float
    waiting: list[Sink]
    positions: list[tuple[Input, Position, int]]


class Daemon:
    """Moves samples from ``inputs`` through ``pipeline`` to ``sinks``, by name.

    ``commit_rows``, ``commit_s``: how much is processed before it is committed; ``alarm`` says which outputs are
    alarms; ``bell`` is rung by sources that have something, where there are several; ``clock``: monotonic seconds;
    ``wall_ns``: nanoseconds since 1970; ``wait(s)`` sleeps and returns True when somebody said stop (by default it
    waits for `stop`).
    """

    def __init__(
        self,
        inputs: Sequence[Input],
        pipeline: Pipeline,
        sinks: Mapping[str, Sink],
        *,
        caretaker: Caretaker | None = None,
        metrics: Metrics | None = None,
        alarm: Callable[[PredictionBatch], Mask | None] | None = None,
        bell: threading.Event | None = None,
        batch_rows: int = 1024,
        commit_rows: int = 1_000_000,
        commit_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self.inputs, self.pipeline, self.sinks = list(inputs), pipeline, dict(sinks)
        self.caretaker = caretaker or Caretaker(pipeline)
        self.alarm, self.batch_rows, self.commit_rows, self.commit_s = alarm, batch_rows, commit_rows, commit_s
        self._metrics, self._bell = metrics, bell or threading.Event()
        self._clock, self._wall_ns = clock, wall_ns
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._change: Callable[[], None] | None = None
        self._commit: _Commit | None = None
        self._committed = self._scored = float("-inf")
        self._uncommitted = 0
        self._begin = 0.0
        self._turn = 0
        self.summary = Summary()
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

    def interrupted(self) -> bool:
        """Asked again and again by a sink that waits for room: whether it shall give up, to stop or to make a change.

        Meanwhile the loop lives on: commands are carried out, metrics are published, the watchdog is fed.
        """
        self.alive()
        self.caretaker.obey()
        self._look_around(self._clock(), held_up=True)
        return self._stopping.is_set() or self._change is not None

    def between_batches(self, change: Callable[[], None]) -> None:
        """Have ``change`` called once, by the loop, when no batch is in hand; safe from a signal handler."""
        self._change = change
        self._bell.set()

    def run(self) -> Summary:
        """Run to the end of the input, or until stopped.

        Raises SourceUnavailable, DataError (the input cannot be used) and SinkUnavailable; all are closed always.
        """
        self._begin = self._clock()
        with ExitStack() as closing:  # each is closed, also where closing another one fails
            closing.callback(self._close_all)
            try:
                for sink in self.sinks.values():
                    sink.open()
                for one in self.inputs:
                    one.source.open(one.position)
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
            for sink in reversed(self.sinks.values()):
                closing.callback(sink.close)
            for one in self.inputs:
                closing.callback(one.source.close)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self.alive()
            self._make_change()
            self.caretaker.obey()
            live = [one for one in self.inputs if not one.ended]
            if not live:
                return
            self._bell.clear()
            alone = len(live) == 1
            patience_s = _POLL_S if self._commit is None else _CONFIRM_S
            self._turn += 1
            first = self._turn % len(live)  # each source is the first one in its turn
            quiet = True
            for one in live[first:] + live[:first]:
                if self._stopping.is_set():
                    break
                try:
                    quiet = not self._read(one, patience_s if alone else 0.0) and quiet
                except SinkPending as error:  # we are to stop while a sink waits for room: the batch comes again
                    log.warning("%s", error)
                    return
            if quiet and not alone and not self._stopping.is_set():
                self._bell.wait(patience_s)
            self._keep_up()

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
            one.pacer = Pacer(one.speed, self._clock, self._wait)
        for intake, messages in by_source(raw, one.intakes):
            arrived = intake.take(messages)
            self._observe_arrival(arrived, len(messages))
            for batch in [arrived.batch] if one.pacer is None else one.pacer.parts(arrived.batch):
                self._handle(intake.name, batch, messages[0].arrival_ns, self._clock() if one.pacer else started)
                if one.pacer is not None:
                    self._keep_up()  # a paced block may take minutes
        cut_short = one.pacer is not None and self._stopping.is_set()  # of a paced block the rest comes again
        if raw[-1].position is not None and not cut_short:
            one.processed(raw[-1].position, len(raw))
        return True

    def _observe_arrival(self, arrived: Arrived, messages: int) -> None:
        if self._metrics is not None:
            self._metrics.observe_arrival(arrived.source, messages, arrived.joined, arrived.missing)

    def _handle(self, source: str, batch: SampleBatch, arrival_ns: int, started: float) -> None:
        out = self.pipeline.process(batch)
        if self.alarm is not None:
            out = replace(out, alarm=self.alarm(out))
        self._deliver(out)
        now = self._clock()
        seconds, streams = now - started, len(self.pipeline.streams)
        self.summary.add(batch, out, seconds, streams)
        self._uncommitted += batch.received
        if len(out):
            self.caretaker.seen(out, now)
        if self._metrics is not None:
            self._metrics.observe_batch(source, batch.received, out, streams)
            for name in self.sinks:
                self._metrics.observe_outputs(name, len(out))
            age_s = (self._wall_ns() - arrival_ns) / NS_PER_S if arrival_ns else None
            self._metrics.observe_latency(seconds, age_s)
        if out.resets and log.isEnabledFor(logging.DEBUG):
            _log_resets(out)
        if self.summary.first_output_s is None and self.summary.applied:
            self.summary.first_output_s = now - self._begin

    def _deliver(self, out: PredictionBatch) -> None:
        """Write to all sinks.  A change that comes while one waits for room is made, and the rest is written then.

        Raises SinkPending when we are to stop and a sink waits for room: then the batch counts as not processed.
        """
        done: set[int] = set()
        while True:
            sink = next((sink for sink in self.sinks.values() if id(sink) not in done), None)
            if sink is None:
                return
            try:
                sink.write(out)
            except SinkPending:
                if self._stopping.is_set():
                    raise
                self._make_change()
            else:
                done.add(id(sink))

    def _make_change(self) -> None:
        if self._change is not None:
            change, self._change = self._change, None
            change()

    def _keep_up(self) -> None:
        """What happens now and then: commit, look around, publish scores."""
        now = self._clock()
        if self._commit_is_due(now):
            self.commit()
        self._look_around(now)
        if self._metrics is not None and now - self._scored >= _SCORES_S:
            self._publish_scores()

    def _look_around(self, now: float, *, held_up: bool = False) -> None:
        sources = {one.name: one.source for one in self.inputs}
        self.caretaker.look_around(now, self._wall_ns() / NS_PER_S, sources, self.sinks, held_up=held_up)

    def _commit_is_due(self, now: float) -> bool:
        if self._commit is not None or self._uncommitted >= self.commit_rows or now - self._committed >= self.commit_s:
            return True
        return any(one.window and 2 * one.unacknowledged >= one.window for one in self.inputs)

    def commit(self) -> bool:
        """Flush all sinks, then acknowledge all inputs; return False while a sink has not confirmed.

        A commit that is not finished is gone on with the next time: it covers what had been processed at its beginning.
        """
        now = self._clock()
        if self._commit is None:
            for one in self.inputs:
                one.settle_read()
            positions = [(one, one.position, one.unacknowledged) for one in self.inputs if one.position is not None]
            self._commit = _Commit(now, list(self.sinks.values()), positions)
            self._uncommitted = 0
        begun, waiting, positions = self._commit
        for sink in list(waiting):
            try:
                sink.flush()
            except SinkPending:
                continue
            waiting.remove(sink)
        if waiting:
            return False
        for one, position, count in positions:
            if position != one.committed:
                one.source.commit(position)
                one.committed = position
                one.unacknowledged -= count
        self._commit = None
        self._committed = now
        if self._metrics is not None:
            self._metrics.observe_commit(self._clock() - begun)
        return True

    def exchange_sinks(self, sinks: Mapping[str, Sink], heirs: Mapping[int, Sink | None]) -> None:
        """Go on with other sinks.  ``heirs``: by the id of one that went, who has taken over what waited in it.

        A commit under way then waits for the heir, or, where there is none, for nobody.
        """
        self.sinks = dict(sinks)
        if self._commit is not None:
            waiting = [heirs.get(id(sink), sink) for sink in self._commit.waiting]
            self._commit = self._commit._replace(waiting=[sink for sink in waiting if sink is not None])

    def settle(self) -> bool:
        """Commit all that was processed; sinks get some time to confirm it.  Return whether they did."""
        patience = self._clock() + _DRAIN_S
        for _ in range(2):  # one that had begun before, and one for the rest
            while not self.commit():
                if self._clock() > patience:
                    return False
                self.alive()
                self._wait(_DRAIN_STEP_S)
        return True

    def _finish(self) -> None:
        """At the end: what waits for other channels, scores, and a last commit, for which sinks get some time."""
        for one in self.inputs:
            if one.ended:
                for intake in one.intakes.values():
                    arrived = intake.finish()
                    if arrived is not None and arrived.batch.received:
                        self._handle(intake.name, arrived.batch, 0, self._clock())
        if self._metrics is not None:
            self._publish_scores()
        if not self.settle():
            log.warning("some outputs were not confirmed; their inputs stay unacknowledged and come again")

    def _publish_scores(self) -> None:
        totals = self.pipeline.scores()
        if totals is not None and self._metrics is not None:
            self._metrics.observe_scores(totals)
        self._scored = self._clock()


def _log_resets(out: PredictionBatch) -> None:
    for row in out.reset.nonzero()[0]:
        log.debug("reset %s of stream %s", ResetReason(int(out.reset[row])).text, out.streams[out.stream[row]])
