"""The daemon: the only loop.  Poll, decode, process, write, count; until the input ends or somebody says stop.

`run` and `replay` are both this loop; they differ in source and sinks.  A stop (`Daemon.stop`, from a signal handler)
lets the batch in hand finish, then everything is flushed and closed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from stream_gru.errors import EndOfInput, SourceUnavailable
from stream_gru.metrics import Metrics
from stream_gru.pacing import Pacer
from stream_gru.pipeline import Pipeline
from stream_gru.protocols import Decoder, Sink, Source
from stream_gru.summary import Summary
from stream_gru.types import NS_PER_S, Position, PredictionBatch, RawMessage, ResetReason, SampleBatch

log = logging.getLogger(__name__)

_POLL_S = 0.2
_FLUSH_S = 1.0
_SCORES_S = 1.0
_RETRY_S = (1.0, 30.0)  # first and longest pause before a source is tried again


class Daemon:
    """Moves samples from ``source`` to ``sinks``.

    ``speed``: 0 as fast as possible, else a multiple of the recording's own speed; ``wait_for_source``: try an
    unreachable source again instead of failing; ``clock``: monotonic seconds; ``wall_ns``: nanoseconds since 1970;
    ``wait(s)`` sleeps and returns True when somebody said stop (by default it waits for `stop`).
    """

    def __init__(
        self,
        source: Source,
        decoder: Decoder,
        pipeline: Pipeline,
        sinks: Sequence[Sink],
        *,
        metrics: Metrics | None = None,
        batch_rows: int = 1024,
        speed: float = 0.0,
        wait_for_source: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._source, self._decoder, self._pipeline, self._sinks = source, decoder, pipeline, list(sinks)
        self._metrics, self._batch_rows, self._wait_for_source = metrics, batch_rows, wait_for_source
        self._clock, self._wall_ns = clock, wall_ns
        self._stopping = threading.Event()
        self._wait = wait or self._stopping.wait
        self._pacer = Pacer(speed, clock, self._wait) if speed else None
        self._flushed = self._scored = float("-inf")
        self._position: Position | None = None
        self.summary = Summary()
        self.ready = False

    def stop(self) -> None:
        """Ask the loop to finish the batch in hand and end; safe from a signal handler."""
        self._stopping.set()

    @property
    def stopped(self) -> bool:
        """Whether somebody asked the loop to end."""
        return self._stopping.is_set()

    def run(self) -> Summary:
        """Run to the end of the input, or until stopped.

        Raises SourceUnavailable, DataError (the input cannot be used) and SinkUnavailable; sinks are closed always.
        """
        begin = self._clock()
        with ExitStack() as closing:  # each is closed, also where closing another one fails
            for sink in reversed(self._sinks):
                closing.callback(sink.close)
            closing.callback(self._source.close)
            try:
                for sink in self._sinks:
                    sink.open()
                self._open_source()
                self.ready = True
                self._loop(begin)
                self._flush()
            finally:
                self.ready = False
                self.summary.seconds = self._clock() - begin
        return self.summary

    def _open_source(self) -> None:
        pause, longest = _RETRY_S
        while not self._stopping.is_set():
            try:
                self._source.open(self._position)
                return
            except SourceUnavailable as error:
                if not self._wait_for_source:
                    raise
                log.warning("%s; trying again in %.0f s", error, pause)
                self._wait(pause)
                pause = min(2 * pause, longest)

    def _loop(self, begin: float) -> None:
        while not self._stopping.is_set():
            try:
                raw = self._source.poll(self._batch_rows, _POLL_S)
            except EndOfInput:
                return
            except SourceUnavailable as error:
                if not self._wait_for_source:
                    raise
                log.warning("%s; opening it again", error)
                self._source.close()
                self._open_source()
                continue
            if raw:
                started = self._clock()
                for batch in self._due(self._decoder.decode(raw)):
                    self._handle(batch, raw, self._clock() if self._pacer else started)
                    if self.summary.first_output_s is None and self.summary.applied:
                        self.summary.first_output_s = self._clock() - begin
                    self._keep_up()  # a paced block may take minutes
                if not (self._pacer and self._stopping.is_set()):  # a paced block may have been cut short
                    self._position = raw[-1].position or self._position
            self._keep_up()

    def _due(self, batch: SampleBatch) -> Iterator[SampleBatch]:
        return iter([batch]) if self._pacer is None else self._pacer.parts(batch)

    def _handle(self, batch: SampleBatch, raw: Sequence[RawMessage], started: float) -> None:
        out = self._pipeline.process(batch)
        for sink in self._sinks:
            sink.write(out)
        seconds = self._clock() - started
        streams = len(self._pipeline.streams)
        self.summary.add(batch, out, seconds, streams)
        if self._metrics is not None:
            self._metrics.observe_batch(batch.received, out, streams)
            arrival = raw[0].arrival_ns
            age_s = (self._wall_ns() - arrival) / NS_PER_S if arrival else None
            self._metrics.observe_latency(seconds, age_s)
        if out.resets and log.isEnabledFor(logging.DEBUG):
            _log_resets(out)

    def _keep_up(self) -> None:
        """What happens now and then: flush outputs, publish scores."""
        now = self._clock()
        if now - self._flushed >= _FLUSH_S:
            self._flush()
        if self._metrics is not None and now - self._scored >= _SCORES_S:
            self._publish_scores()

    def _flush(self) -> None:
        for sink in self._sinks:
            sink.flush()
        if self._position is not None:
            self._source.commit(self._position)
        self._flushed = self._clock()
        if self._metrics is not None:
            self._publish_scores()

    def _publish_scores(self) -> None:
        totals = self._pipeline.scores()
        if totals is not None and self._metrics is not None:
            self._metrics.observe_scores(totals)
        self._scored = self._clock()


def _log_resets(out: PredictionBatch) -> None:
    for row in out.reset.nonzero()[0]:
        log.debug("reset %s of stream %s", ResetReason(int(out.reset[row])).text, out.streams[out.stream[row]])
