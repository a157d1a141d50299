"""When the loop commits, what it holds until then, and how a run ends."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stream_gru.core.commit_records import FileOffset, FlushResult, OutboxRow
from stream_gru.core.errors import DataError, SinkUnavailable, StateError, StoreError, StoreLocked
from stream_gru.core.types import Position, RawMessage, SampleBatch
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.eviction import StatePolicy
from stream_gru.runtime.checkpoint.store import Store
from stream_gru.runtime.daemon import Daemon
from stream_gru.runtime.ingest.channel_join import ChannelJoiner
from stream_gru.runtime.ingest.device_counters import GapCounter
from stream_gru.runtime.ingest.ingest import Ingest, SharedStages
from stream_gru.runtime.wiring import Input
from tests.runtime.test_daemon import BATCHES, FakeTime, by_name, make, message, the_input
from tests.support.batches import CHANNELS, batch, rows_of
from tests.support.fake_connectors import ListSink, ListSource, ReadyDecoder
from tests.support.pipelines import toy_pipeline
from tests.support.runtimes import daemon_of
from tests.support.stores import opened, table_rows


def durable(
    folder: Path, source: ListSource, *sinks: ListSink, pipeline: Pipeline | None = None, **options: object
) -> Daemon:
    """A daemon with a store."""
    pipeline = pipeline or toy_pipeline()
    checkpointer = Checkpointer(pipeline, Store(folder))
    return make(source, *sinks, pipeline=pipeline, checkpointer=checkpointer, **options)  # type: ignore[arg-type]


def commits_of(folder: Path) -> int:
    """The number of commits in a closed store."""
    with opened(folder) as store:
        return store.commit_no


# ---- when


def test_a_commit_comes_after_so_many_samples(tmp_path: Path) -> None:
    """Ten samples are two batches of five; the rest is committed at the end."""
    source = ListSource([message(i) for i in range(3)])
    durable(tmp_path, source, commit_every=10, commit_interval_s=1000.0).run()
    assert [position.offset for position in source.committed] == [2, 3]
    assert commits_of(tmp_path) == 2


def test_a_commit_comes_after_so_many_seconds(tmp_path: Path) -> None:
    """Even with few samples."""
    time = FakeTime()
    source = ListSource([message(0), message(1), lambda: time.wait(5.0), message(2), message(3)])
    durable(tmp_path, source, time=time, commit_interval_s=4.0).run()
    assert [position.offset for position in source.committed] == [2, 4]


def test_the_loop_waits_no_longer_than_until_the_next_commit() -> None:
    """A quiet source does not delay processed samples; without anything to commit the wait is longer."""
    waits: list[float] = []
    source = ListSource([message(0), [], lambda: None, [], []])
    daemon = make(source, commit_interval_s=0.1)
    poll = source.poll

    def noting(limit: int, timeout_s: float) -> object:
        waits.append(timeout_s)
        return poll(limit, timeout_s)

    source.poll = noting  # type: ignore[method-assign, assignment]
    daemon.run()
    assert waits[0] == 0.2
    assert max(waits) == 0.2


def test_in_the_middle_of_a_paced_block_nothing_is_committed(tmp_path: Path) -> None:
    """Its position is known at its end only; without a store outputs are released."""
    slow = [batch(["p"] * 30, list(range(30)))]
    for folder, flushes in ((tmp_path, 5), (None, 14)):
        source, sink, pipeline = ListSource([message(0)]), ListSink(), toy_pipeline()
        checkpointer = Checkpointer(pipeline, None if folder is None else Store(folder))
        make(source, sink, batches=slow, speed=1.0, pipeline=pipeline, checkpointer=checkpointer).run()
        assert sink.calls.count("write") >= 30
        assert (sink.calls.count("flush") <= flushes) if folder else (sink.calls.count("flush") >= flushes)
        assert source.committed == [Position("a", 1)]


# ---- a restart


def test_the_first_commit_comes_before_anything_is_read(tmp_path: Path) -> None:
    """So every written file is in the store, however soon the process is killed."""
    source, sink, pipeline = ListSource([]), ListSink(), toy_pipeline()
    store, seen = Store(tmp_path), list[int]()
    source.items.append(lambda: seen.append(store.commit_no))
    sink.answer = FlushResult(file_offset=FileOffset("out.jsonl", 0))
    make(source, sink, pipeline=pipeline, checkpointer=Checkpointer(pipeline, store)).run()
    assert seen == [1]


def test_two_runs_are_one(tmp_path: Path) -> None:
    """A run that was stopped and one that continues at its position: outputs and states of one run without a stop."""
    alone, sinks = toy_pipeline(), [ListSink(), ListSink()]
    expected = rows_of([alone.process(one) for one in BATCHES])
    first = ListSource([message(0), message(1)])
    durable(tmp_path, first, sinks[0]).run()
    second, pipeline = ListSource([message(2), message(3)]), toy_pipeline()
    durable(tmp_path, second, sinks[1], pipeline=pipeline).run()
    assert (first.position, second.position) == (None, Position("a", 2))
    assert rows_of([*sinks[0].written, *sinks[1].written]) == expected
    assert table_rows(pipeline) == table_rows(alone)


def test_a_restart_that_reads_nothing_acknowledges_nothing(tmp_path: Path) -> None:
    """It commits nothing; its store records the clean shutdown."""
    durable(tmp_path, ListSource([message(0)])).run()
    source = ListSource([])
    durable(tmp_path, source).run()
    assert source.committed == []
    with opened(tmp_path) as store:
        assert (store.commit_no, store.clean_shutdown) == (1, True)


def test_what_waits_for_other_channels_outlives_a_stop(tmp_path: Path) -> None:
    """A record half before it and half after it is one sample."""
    nan = float("nan")
    halves = [batch(["p"], [1], [[1, nan, nan]]), batch(["p"], [1], [[nan, 2, 3]])]
    written: list[object] = []
    for number, half in enumerate(halves):
        source, sink, pipeline = ListSource([message(0)]), ListSink(), toy_pipeline()
        joiner = ChannelJoiner(CHANNELS, 10**9, 5 * 10**9, 10**9)
        shared = SharedStages(lambda batch: batch, joiner=joiner)
        ingest = Ingest("replay", ReadyDecoder([half]), joins=True, shared=shared)
        checkpointer = Checkpointer(pipeline, Store(tmp_path), {"channel_join": joiner.state})
        daemon = daemon_of(
            [Input("replay", source, {"replay": ingest})], pipeline, by_name(sink), checkpointer=checkpointer
        )
        if not number:
            source.items.append(daemon.stop)
        daemon.run()
        written += rows_of(sink.written)
    whole = toy_pipeline().process(batch(["p"], [1], [[1, 2, 3]]))
    assert written == rows_of([whole])


# ---- errors


class _FullStore(Store):
    """Its disk is full from the second commit on."""

    def write(self, changes: Commit) -> None:
        if self.commit_no:
            raise StoreError("disk full; nothing is acknowledged")
        super().write(changes)


def test_a_store_that_fails_ends_the_run(tmp_path: Path) -> None:
    """From there on nothing is acknowledged or released; everything is closed, the store free for the next start."""
    source, sink, pipeline = ListSource([message(i) for i in range(4)]), ListSink(), toy_pipeline()
    daemon = make(
        source, sink, pipeline=pipeline, checkpointer=Checkpointer(pipeline, _FullStore(tmp_path)), commit_every=1
    )
    with pytest.raises(StoreError, match="disk full"):
        daemon.run()
    assert source.committed == [Position("a", 1)]
    assert [call for call in sink.calls if call != "write"] == [
        "open", *["flush", "committed"] * 2, "flush", "close",
    ]  # fmt: skip
    assert (source.closed, daemon.ready) == (1, False)
    with opened(tmp_path) as store:
        assert (store.commit_no, store.clean_shutdown) == (1, False)
        assert store.positions() == {"replay": Position("a", 1)}


def test_a_second_daemon_touches_neither_sources_nor_sinks(tmp_path: Path) -> None:
    """It ends with the process id of the one that holds the store."""
    source, sink = ListSource([message(0)]), ListSink()
    with opened(tmp_path), pytest.raises(StoreLocked, match="uses this state"):
        durable(tmp_path, source, sink).run()
    assert (source.opened, sink.calls) == (0, ["close"])


@pytest.mark.parametrize("error", [StateError("the file is shorter"), SinkUnavailable("disk full")])
def test_a_sink_that_cannot_continue_ends_the_start(tmp_path: Path, error: Exception) -> None:
    """No source is opened, nothing is read, and the store is unchanged."""
    durable(tmp_path, ListSource([message(0)])).run()
    source = ListSource([message(1)])
    with pytest.raises(type(error)):
        durable(tmp_path, source, ListSink("open", error)).run()
    assert (source.opened, source.closed, len(source.items)) == (0, 1, 1)
    assert commits_of(tmp_path) == 1


def test_a_source_that_is_another_one_ends_the_start(tmp_path: Path) -> None:
    """The position is unchanged."""
    durable(tmp_path, ListSource([message(0)])).run()
    with pytest.raises(DataError):
        durable(tmp_path, ListSource([message(1)], [DataError("another file")])).run()
    with opened(tmp_path) as store:
        assert store.positions() == {"replay": Position("a", 1)}


# ---- the end


def test_answers_that_come_in_the_last_moment_are_stored(tmp_path: Path) -> None:
    """Sinks have some time after the last commit, are closed, and are flushed once more."""
    source, sink, time = ListSource([message(0)]), ListSink(), FakeTime()
    sink.answer = FlushResult(unacked=[OutboxRow("t", b"p", "k", number) for number in (1, 2, 3)])
    sink.waiting = 3

    def confirm() -> None:
        sink.waiting -= 1
        sink.answer = FlushResult(acked=[*sink.answer.acked, 3 - sink.waiting])

    time.on_wait = confirm
    durable(tmp_path, source, sink, time=time).run()
    with opened(tmp_path) as store:
        assert store.outputs_waiting() == {}


def test_unacknowledged_outputs_are_sent_at_the_next_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log reports it, and the sink gets it there."""
    sink, again = ListSink(), ListSink()
    rows = [OutboxRow("t", b"p", "k", number) for number in (1, 2)]
    sink.answer, sink.waiting = FlushResult(unacked=rows), 2
    durable(tmp_path, ListSource([message(0)]), sink).run()
    assert "2 outputs were not acknowledged; they are sent at the next start" in caplog.text
    durable(tmp_path, ListSource([]), again).run()
    assert again.kept is not None
    assert list(again.kept.unacked) == rows


def test_a_daemon_that_was_stopped_rests_while_sinks_confirm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A requested stop does not turn its waits into a busy loop."""
    time = FakeTime()

    class Event(threading.Event):
        """It waits by the fake clock, and not at all when it is set."""

        def wait(self, timeout: float | None = None) -> bool:
            if not self.is_set():
                time.wait(timeout or 0.0)
            return self.is_set()

    monkeypatch.setattr("stream_gru.runtime.daemon.threading", SimpleNamespace(Event=Event))
    source, sink = ListSource([message(0)]), ListSink()
    daemon = daemon_of([the_input(source, BATCHES)], toy_pipeline(), by_name(sink), clock=time.clock)
    source.items.append(daemon.stop)
    sink.waiting = 1
    before = time.now
    daemon.run()
    rests = [seconds for seconds in time.waits if seconds > 0]
    assert daemon.stopped
    assert 0 < len(rests) < 100
    assert sum(rests) > 0.9 * (time.now - before)


def test_at_the_end_of_the_input_nothing_waits_any_more(tmp_path: Path) -> None:
    """Incomplete samples are emitted before the last commit, and counted."""
    nan = float("nan")
    halves = [batch(["p"], [1], [[1, 2, 3]]), batch(["p"], [2], [[4, nan, nan]])]
    source, sink, pipeline = ListSource([message(0), message(1)]), ListSink(), toy_pipeline()
    joiner = ChannelJoiner(CHANNELS, 10**9, 5 * 10**9, 10**9)
    shared = SharedStages(lambda batch: batch, joiner=joiner)
    ingest = Ingest("replay", ReadyDecoder(halves), joins=True, shared=shared)
    checkpointer = Checkpointer(pipeline, Store(tmp_path), {"channel_join": joiner.state})
    summary = daemon_of(
        [Input("replay", source, {"replay": ingest})], pipeline, by_name(sink), checkpointer=checkpointer
    ).run()
    assert summary.balanced
    assert sum(len(out) for out in sink.written) == 2
    with opened(tmp_path) as store:
        assert [row.row for row in store.rows()] == list(table_rows(pipeline).values())


# ---- evicted streams


def test_a_stream_is_back_before_its_message_is_taken_in(tmp_path: Path) -> None:
    """Its counter continues: samples missing during its absence are counted."""
    pipeline, watch = toy_pipeline(max_streams=2**31), GapCounter()
    turns: list[SampleBatch] = []
    for turn, name in enumerate("abcabc"):
        turns.append(batch([name], [turn], device_seq=np.array([10 * (turn // 3)])))
    source = ListSource([message(i) for i in range(6)])
    ingest = Ingest("s", ReadyDecoder(turns), gaps=watch)
    checkpointer = Checkpointer(
        pipeline, Store(tmp_path), {"gaps:s": watch.state}, policy=StatePolicy(max_streams=1, evict=True)
    )
    missing: list[int] = []
    apply = ingest.apply

    def noting(one: SampleBatch) -> object:
        result = apply(one)
        missing.append(result.missing)
        return result

    ingest.apply = noting  # type: ignore[method-assign, assignment]
    daemon_of([Input("s", source, {"s": ingest})], pipeline, {}, checkpointer=checkpointer, commit_every=1).run()
    assert missing == [0, 0, 0, 9, 9, 9]
    assert checkpointer.counts.restored == 3


def test_of_several_sources_none_is_read_after_a_stop(tmp_path: Path) -> None:
    """The current one is finished, committed and acknowledged; the others are not polled."""
    sources, pipeline, sink = [ListSource([message(0)]), ListSource([message(0)])], toy_pipeline(), ListSink()
    inputs = [
        Input(name, source, {name: Ingest(name, ReadyDecoder([batch([name], [1])]))})
        for name, source in zip("ab", sources, strict=True)
    ]
    daemon = daemon_of(inputs, pipeline, by_name(sink), checkpointer=Checkpointer(pipeline, Store(tmp_path)))
    sink.on_write = daemon.stop
    daemon.run()
    assert daemon.stopped
    assert sorted(len(source.committed) for source in sources) == [0, 1]
    with opened(tmp_path) as store:
        assert len(store.positions()) == 1


def test_messages_without_a_position_are_never_acknowledged(tmp_path: Path) -> None:
    """Their states are stored."""
    source = ListSource([RawMessage(b"0")])
    durable(tmp_path, source).run()
    assert source.committed == []
    with opened(tmp_path) as store:
        assert (store.names(), store.positions()) == (["p"], {})
