from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from stream_gru.connectors.sinks.encoders import JsonEncoder
from stream_gru.connectors.sinks.file import file_sink
from stream_gru.connectors.sinks.stdout import StdoutSink
from stream_gru.core.errors import DataError, SinkUnavailable, SourceUnavailable
from stream_gru.core.protocols import Sink
from stream_gru.core.types import DropReason, Position, RawMessage, Rejected, SampleBatch
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.daemon import Daemon
from stream_gru.runtime.ingest.channel_join import ChannelJoiner
from stream_gru.runtime.ingest.ingest import Ingest, SharedStages
from stream_gru.runtime.metrics import Metrics
from stream_gru.runtime.wiring import Input
from tests.support.batches import CHANNELS, batch, hostile_batches, rows_of
from tests.support.fake_connectors import ListSink, ListSource, ReadyDecoder
from tests.support.pipelines import toy_pipeline
from tests.support.runtimes import daemon_of

BATCHES = [batch(["p"] * 5, [5 * k + i for i in range(5)]) for k in range(4)]


class FakeTime:
    """A clock that advances a little with each reading, and by each wait."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self.stop_after = 10**9
        self.on_wait: Callable[[], None] = lambda: None

    def clock(self) -> float:
        """Seconds."""
        self.now += 0.001
        return self.now

    def wait(self, seconds: float) -> bool:
        """Advance the clock."""
        self.on_wait()
        self.waits.append(seconds)
        self.now += seconds
        return len(self.waits) >= self.stop_after


def message(number: int) -> RawMessage:
    """The message that `ReadyDecoder` turns into batch ``number``."""
    return RawMessage(b"%d" % number, position=Position("a", number + 1), arrival_ns=10**18)


def the_input(source: ListSource, batches: list[SampleBatch], speed: float = 0.0, name: str = "replay") -> Input:
    """An input whose messages are turned into these batches."""
    return Input(name, source, {name: Ingest(name, ReadyDecoder(batches))}, speed)


def by_name(*sinks: Sink) -> dict[str, Sink]:
    """Sinks with names."""
    return {f"sink-{number}": sink for number, sink in enumerate(sinks)}


def make(
    source: ListSource,
    *sinks: ListSink,
    batches: list[SampleBatch] | None = None,
    time: FakeTime | None = None,
    pipeline: Pipeline | None = None,
    speed: float = 0.0,
    **options: object,
) -> Daemon:
    """A daemon over a toy model, with a fake clock."""
    time = time or FakeTime()
    return daemon_of(
        [the_input(source, batches or BATCHES, speed)], pipeline or toy_pipeline(), by_name(*sinks),
        clock=time.clock, wait=time.wait, wall_ns=lambda: 10**18 + 10**9, **options,  # type: ignore[arg-type]
    )  # fmt: skip


def test_everything_goes_from_source_to_all_sinks() -> None:
    """All batches are written to every sink, in order, then all is flushed, acknowledged and closed."""
    source, one, two = ListSource([message(0), [], message(1), message(2), message(3)]), ListSink(), ListSink()
    summary = make(source, one, two).run()
    alone = toy_pipeline()
    assert rows_of(one.written) == rows_of(two.written) == rows_of([alone.process(b) for b in BATCHES])
    assert (summary.received, summary.applied, summary.batches) == (20, 20, 4)
    assert source.committed[-1] == Position("a", 4)
    assert one.calls[0] == "open"
    assert one.calls[-3:] == two.calls[-3:] == ["flush", "committed", "close"]
    assert (source.opened, source.closed) == (1, 1)


@settings(max_examples=40)
@given(st.lists(hostile_batches(30), max_size=4), st.integers(0, 9), st.sampled_from([0.0, 1000.0]))
def test_every_sample_is_accounted_for(batches: list[SampleBatch], rejects: int, speed: float) -> None:
    """For any input at any speed: received = applied + dropped, rejects included, and the metrics agree."""
    batches = [replace(b, rejected=(Rejected(DropReason.PARSE, rejects),) if rejects else ()) for b in batches]
    pipeline = toy_pipeline(max_streams=3)
    metrics = Metrics(CollectorRegistry(), pipeline.manifest, "toy", "0")
    source = ListSource([message(i) for i in range(len(batches))])
    daemon = make(source, batches=batches, pipeline=pipeline, metrics=metrics, speed=speed)
    summary = daemon.run()
    assert summary.balanced
    assert summary.received == sum(b.received for b in batches)

    def total(name: str, **labels: str) -> float:
        return metrics.registry.get_sample_value(f"stream_gru_{name}_total", {"source": "replay", **labels}) or 0

    assert total("samples_received") == summary.received
    assert total("samples_applied") == summary.applied
    assert {r.text: total("samples_dropped", reason=r.text) for r in DropReason if summary.dropped[r.text]} == {
        reason: n for reason, n in summary.dropped.items() if n
    }


def test_a_batch_of_rejects_only_is_harmless(tmp_path: Path) -> None:
    """It is counted, and files of every form continue."""
    empty = replace(BATCHES[0].take(slice(0, 0)), rejected=(Rejected(DropReason.ENCODING, 3),))
    sinks = [file_sink(tmp_path / f"out.{form}", append=False) for form in ("jsonl", "csv")]
    source = ListSource([message(0), message(1)])
    daemon = daemon_of([the_input(source, [empty, BATCHES[0]])], toy_pipeline(), by_name(*sinks))
    summary = daemon.run()
    assert (summary.received, summary.applied, dict(summary.dropped)) == (8, 5, {"encoding": 3})
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 5
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 6


def test_stop_finishes_the_batch_in_hand() -> None:
    """Both of two sinks get the batch during which the stop was requested; the next batch is left to the next run."""
    source, second = ListSource([message(i) for i in range(4)]), ListSink()
    first = ListSink()
    daemon = make(source, first, second)
    first.on_write = daemon.stop
    summary = daemon.run()
    assert len(first.written) == len(second.written) == 1
    assert summary.applied == 5
    assert source.committed == [Position("a", 1)]
    assert first.calls[-1] == second.calls[-1] == "close"
    assert not daemon.ready


def test_ready_is_true_only_between_opening_and_closing() -> None:
    """Ready means: source open, sinks open, loop running."""
    seen: list[bool] = []
    source = ListSource([])
    daemon = make(source, ListSink())
    source.items = [lambda: seen.append(daemon.ready)]
    seen.append(daemon.ready)
    daemon.run()
    assert [*seen, daemon.ready] == [False, True, False]


@pytest.mark.parametrize("fail", ["open", "write", "flush", "committed"])
def test_all_is_closed_when_a_sink_fails(fail: str) -> None:
    """Wherever a sink fails, its error is raised, and every sink and the source are closed."""
    error = SinkUnavailable("disk full")
    source, one, two = ListSource([message(0)]), ListSink(fail, error), ListSink()
    with pytest.raises(SinkUnavailable, match="disk full"):
        make(source, one, two).run()
    assert source.closed == 1
    assert one.calls[-1] == two.calls[-1] == "close"


@pytest.mark.parametrize("error", [DataError("no column"), SourceUnavailable("gone"), RuntimeError("a bug")])
def test_all_is_closed_when_the_source_fails(error: Exception) -> None:
    """The error of a source is raised after all sinks are closed."""
    source, sink = ListSource([message(0), error]), ListSink()
    with pytest.raises(type(error), match=str(error)):
        make(source, sink).run()
    assert len(sink.written) == 1
    assert (source.closed, sink.calls[-1]) == (1, "close")


def test_a_sink_that_cannot_be_closed_keeps_no_other_one_open() -> None:
    """Closing continues, and the failure is reported."""
    source, one, two = ListSource([message(0)]), ListSink("close", SinkUnavailable("disk full")), ListSink()
    with pytest.raises(SinkUnavailable, match="disk full"):
        make(source, one, two).run()
    assert (source.closed, two.calls[-1]) == (1, "close")


def test_an_unreachable_source_of_a_replay_is_an_error() -> None:
    """The first failure is raised."""
    source = ListSource([message(0)], [SourceUnavailable("no such file")])
    with pytest.raises(SourceUnavailable, match="no such file"):
        make(source, ListSink()).run()
    assert source.opened == source.closed == 1


def test_several_sources_take_turns() -> None:
    """None of three busy sources waits for the end of another; every sample of each is written, in its order."""
    sources = [ListSource([message(i) for i in range(4)]) for _ in range(3)]
    batches = [[batch([name] * 5, [5 * k + i for i in range(5)]) for k in range(4)] for name in "abc"]
    inputs = [the_input(one, b, name=n) for one, b, n in zip(sources, batches, "abc", strict=True)]
    sink = ListSink()
    summary = daemon_of(inputs, toy_pipeline(), by_name(sink)).run()
    order = [out.stream_names[0] for out in sink.written]
    assert all(set(order[i : i + 3]) == {"a", "b", "c"} for i in range(0, 12, 3))
    assert summary.applied == 60
    assert [source.committed[-1] for source in sources] == [Position("a", 4)] * 3


def test_while_a_sink_is_full_nothing_is_read() -> None:
    """Processed samples are committed, so that the sink may send them; then the sources wait until there is space."""
    time, full, other = FakeTime(), ListSink(), ListSink()
    source = ListSource([message(i) for i in range(4)])
    full.on_write = lambda: setattr(full, "room", False)
    left: list[int] = []

    def look() -> None:
        left.append(len(source.items))
        assert full.calls[-1] == "committed"
        full.room = len(left) % 3 == 0

    time.on_wait = look
    summary = make(source, full, other, time=time).run()
    assert left == [3] * 3 + [2] * 3 + [1] * 3 + [0] * 3
    assert rows_of(full.written) == rows_of(other.written)
    assert (summary.applied, len(source.committed)) == (20, 4)


def test_a_sink_that_never_confirms_does_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """A commit does not wait for acknowledgements: inputs are acknowledged, after some seconds the daemon ends and logs
    it.
    """
    source, sink, time = ListSource([message(0)]), ListSink(), FakeTime()
    sink.waiting = 5
    begin = time.now
    make(source, sink, time=time).run()
    assert source.committed == [Position("a", 1)]
    assert "5 outputs were not acknowledged; they are lost" in caplog.text
    assert time.now - begin < 5


def test_the_end_waits_for_sinks_that_do_confirm() -> None:
    """No longer than they take."""
    source, sink, time = ListSource([message(0)]), ListSink(), FakeTime()
    sink.waiting = 3
    time.on_wait = lambda: setattr(sink, "waiting", sink.waiting - 1)
    make(source, sink, time=time).run()
    assert (sink.waiting, len(time.waits)) == (0, 3)


def test_half_a_window_of_the_other_side_is_committed_at_once() -> None:
    """A broker that waits for acknowledgements after two messages gets one for each."""
    source = ListSource([message(i) for i in range(4)])
    daemon = make(source, ListSink())
    daemon.runtime.inputs[0].max_inflight = 2
    daemon.run()
    assert [position.offset for position in source.committed] == [1, 2, 3, 4]


def test_records_that_wait_for_other_channels_are_acknowledged_at_once() -> None:
    """They are part of the stored state, and do not delay the acknowledgement."""
    nan = float("nan")
    records = [
        batch(["p"], [second], [[1 if channel == k else nan for k in range(CHANNELS)]])
        for second in range(3)
        for channel in range(CHANNELS)
    ]
    source, sink = ListSource([message(i) for i in range(2 * CHANNELS + 1)]), ListSink()
    shared = SharedStages(lambda batch: batch, joiner=ChannelJoiner(CHANNELS, 10**9, 5 * 10**9, 10**9))
    ingest = Ingest("replay", ReadyDecoder(records), joins=True, shared=shared)
    one = Input("replay", source, {"replay": ingest}, max_inflight=1)  # each message must be committed at once
    time = FakeTime()
    daemon = daemon_of([one], toy_pipeline(), by_name(sink), clock=time.clock, wait=time.wait)
    source.items.append(daemon.stop)  # a stop, not the end of the input: incomplete samples are kept
    daemon.run()
    assert [len(out) for out in sink.written].count(1) == 2
    assert [position.offset for position in source.committed] == list(range(1, 2 * CHANNELS + 2))


def test_a_change_is_made_between_two_batches() -> None:
    """A change requested during a batch happens after it and before the next one, once."""
    source, sink = ListSource([message(i) for i in range(3)]), ListSink()
    daemon = make(source, sink)
    seen: list[int] = []
    sink.on_write = lambda: daemon.call_soon(lambda: seen.append(len(sink.written)))
    daemon.run()
    assert seen == [1, 2, 3]


def test_outputs_are_flushed_while_a_slow_recording_plays() -> None:
    """At the recording's own speed outputs are flushed after a second at the latest, not once per block."""
    sink = ListSink()
    slow = batch(["p"] * 30, list(range(30)))
    make(ListSource([message(0)]), sink, batches=[slow], speed=1.0).run()
    assert sink.calls.count("write") >= 30
    assert sink.calls.count("flush") >= 14


@pytest.mark.parametrize("durable", [True, False])
def test_a_stop_ends_a_paced_block_at_once(tmp_path: Path, durable: bool) -> None:
    """With a store the rest is processed without pauses, as the position is after it; otherwise it is skipped."""
    time, sink = FakeTime(), ListSink()
    source = ListSource([message(0), message(1)])
    slow = [batch(["p"] * 5, list(range(5))), batch(["p"] * 50, list(range(5, 55)))]
    pipeline = toy_pipeline()
    checkpointer = Checkpointer(pipeline, Store(tmp_path)) if durable else None
    daemon = make(source, sink, batches=slow, time=time, speed=1.0, pipeline=pipeline, checkpointer=checkpointer)
    time.stop_after = 200
    sink.on_write = lambda: daemon.stop() if len(time.waits) > 150 else None
    summary = daemon.run()
    assert (summary.applied == 55) if durable else (5 < summary.applied < 55)
    assert summary.balanced
    assert len(time.waits) < 210
    if durable:
        alone = toy_pipeline()
        assert rows_of(sink.written) == rows_of([alone.process(one) for one in slow])


def test_times_of_a_run_are_those_of_its_clock() -> None:
    """Seconds, first output and latencies come from the given clock."""
    time = FakeTime()
    begin = time.now
    summary = make(ListSource([message(0), message(1)]), ListSink(), time=time).run()
    assert 0 < (summary.first_output_s or 0) <= summary.seconds <= time.now - begin
    assert len(summary.latencies_s) == 2
    result = summary.as_dict(None, 0.9)
    assert (result["samples"], result["applied"], result["dropped"]) == (10, 10, {})


def test_a_reset_is_in_the_log_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    """With its name and the stream's."""
    with caplog.at_level(logging.DEBUG, "stream_gru.runtime.daemon"):
        make(ListSource([message(0)]), ListSink()).run()
    assert [record.message for record in caplog.records] == ["reset first_sample of stream p"]


def test_a_pipe_to_a_closed_reader_ends_the_run() -> None:
    """When the reader of the output has closed, the run ends with SinkUnavailable whose cause is the broken pipe."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stream:
        source = ListSource([message(0), lambda: os.close(reader), message(1), message(2)])
        sink = StdoutSink(JsonEncoder(), stream)
        daemon = daemon_of([the_input(source, BATCHES)], toy_pipeline(), by_name(sink))
        with pytest.raises(SinkUnavailable) as caught:
            daemon.run()
    assert isinstance(caught.value.__cause__, BrokenPipeError)
    assert daemon.summary.applied == 5
