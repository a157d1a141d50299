"""The checkpointer: what a commit makes durable, in which order, and how recovery restores it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from msgspec import Struct

from stream_gru.connectors.sinks.file import file_sink
from stream_gru.core.commit_records import FileOffset, FlushResult, OutboxRow, ProcessedPackets
from stream_gru.core.errors import SinkUnavailable, StoreError
from stream_gru.core.keyed_state import KeyedState
from stream_gru.core.types import Position, ResetReason
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.store import Store
from tests.support.batches import batch
from tests.support.fake_connectors import ListSink, ListSource, PacketSource
from tests.support.stores import (
    change_store,
    checkpointer_of,
    copy_of_now,
    feed,
    model,
    opened,
    store_content,
    table_rows,
)

AT = Position("a", 5)


class Note(Struct, array_like=True):
    """The record of the component under test."""

    text: str


def notes(**records: str) -> KeyedState[Note]:
    """Return a component with these records."""
    part: KeyedState[Note] = KeyedState(Note, "notes")
    for name, text in records.items():
        part.put(name, Note(text))
    return part


def read_of(part: KeyedState[Note]) -> dict[str, str]:
    """Return the text of the records under some keys."""
    return {name: note.text for name in ("a", "b", "c", "d", "") if (note := part.get(name)) is not None}


def commits_of(checkpointer: Checkpointer) -> int:
    """Return the number of commits in the store."""
    assert checkpointer.store is not None
    return checkpointer.store.commit_no


# ---- the commit


def test_a_commit_flushes_writes_releases_and_acknowledges_in_this_order(tmp_path: Path) -> None:
    """Flush all sinks, run one transaction, release the outputs, and only then acknowledge the inputs."""
    calls: list[str] = []
    source, one, two = PacketSource(), ListSink(), ListSink()
    for name, part in (("source", source), ("one", one), ("two", two)):
        part.on_call = lambda call, name=name: calls.append(f"{name} {call}")  # type: ignore[misc]

    class Telling(Store):
        def write(self, changes: Commit) -> None:
            calls.append("write")
            super().write(changes)

    checkpointer = Checkpointer(model(), Telling(tmp_path))
    checkpointer.recover({"s": source}, {"one": one, "two": two})
    assert calls == ["one open", "two open", "source resume", "source open"]
    calls.clear()
    feed(checkpointer, "a", 1, 2)
    checkpointer.commit({"s": (source, AT)}, {"one": one, "two": two})
    assert calls == [
        "one flush", "two flush", "source receipts", "write", "one committed", "two committed", "source commit",
    ]  # fmt: skip
    assert source.committed == [AT]


def test_a_commit_without_a_store_only_lacks_the_transaction() -> None:
    """Sinks open without a checkpoint, are flushed and released; sources are acknowledged."""
    source, sink = PacketSource(), ListSink()
    checkpointer = Checkpointer(model())
    assert checkpointer.recover({"s": source}, {"f": sink}) == {}
    assert (sink.kept, source.packets, source.position) == (None, None, None)
    feed(checkpointer, "a", 1, 2)
    checkpointer.commit({"s": (source, AT)}, {"f": sink})
    assert sink.calls == ["open", "flush", "committed"]
    assert source.committed == [AT]
    assert not checkpointer.healthy
    checkpointer.mark_clean_shutdown()
    checkpointer.close()


def test_an_idle_commit_writes_nothing(tmp_path: Path) -> None:
    """Without new samples nothing is written or acknowledged, though each sink is flushed each time."""
    source, sink, part = PacketSource(), ListSink(), notes(a="x")
    checkpointer = checkpointer_of(tmp_path, parts={"p": part})
    read = {"s": (source, AT), "never read": (ListSource([]), None)}
    feed(checkpointer, "a", 1, 2)
    for _ in range(3):
        checkpointer.commit(read, {"f": sink})
    assert (commits_of(checkpointer), checkpointer.counts.commits) == (1, 1)
    assert source.committed == [AT]
    assert sink.calls == ["flush", "committed"] * 3


@pytest.mark.parametrize(
    "written",
    [
        FlushResult(file_offset=FileOffset("f", 1)),
        FlushResult(unacked=[OutboxRow("t", b"p", "k", 1)]),
        FlushResult(acked=[4]),
    ],
)
def test_each_field_of_a_flush_result_is_written_once(tmp_path: Path, written: FlushResult) -> None:
    """Each field alone causes a commit; an unchanged file offset does not."""
    sink = ListSink()
    checkpointer = checkpointer_of(tmp_path)
    for _ in range(2):
        sink.answer = FlushResult(file_offset=written.file_offset) if sink.calls else written
        checkpointer.commit({}, {"f": sink})
    assert commits_of(checkpointer) == 1


def test_sinks_and_sources_continue_after_the_last_commit(tmp_path: Path) -> None:
    """File offset, unacknowledged outputs, position and packets return to the sink and source of the same name."""
    sink, source = ListSink(), PacketSource()
    checkpointer = checkpointer_of(tmp_path / "a")
    row = OutboxRow("t", b"p", "k", 3)
    sink.answer = FlushResult(FileOffset("f", 7, "d"), [row])
    source.processed = ProcessedPackets({9: b"nine"})
    checkpointer.commit({"s": (source, AT)}, {"f": sink})
    checkpointer.close()

    sink, source, other = ListSink(), PacketSource(), PacketSource()
    checkpointer = Checkpointer(model(), Store(tmp_path / "a"))
    assert checkpointer.recover({"s": source, "t": other}, {"f": sink}) == {"s": AT}
    assert sink.kept is not None
    assert (sink.kept.file_offset, list(sink.kept.unacked), sink.kept.last_number) == (
        FileOffset("f", 7, "d"),
        [row],
        3,
    )
    assert (source.packets, source.position, other.packets, other.position) == ({9: b"nine"}, AT, {}, None)
    sink.answer = FlushResult(file_offset=FileOffset("f", 7, "d"))
    checkpointer.commit({"s": (source, AT)}, {"f": sink})
    assert (commits_of(checkpointer), source.committed) == (1, [])  # nothing of that is new


def test_a_new_session_is_committed_without_new_messages(tmp_path: Path) -> None:
    """The position is unchanged, but the known packets are deleted and the source is acknowledged."""
    source = PacketSource()
    checkpointer = checkpointer_of(tmp_path)
    source.processed = ProcessedPackets({9: b"nine"})
    checkpointer.commit({"s": (source, AT)}, {})
    source.processed = ProcessedPackets(new_session=True)
    checkpointer.commit({"s": (source, AT)}, {})
    assert checkpointer.store is not None
    assert checkpointer.store.packets("s") == {}
    assert source.committed == [AT, AT]


def test_a_reopened_source_can_start_at_its_beginning(tmp_path: Path) -> None:
    """After a reload another input may have the same name: its first commit is written at any position."""
    checkpointer = checkpointer_of(tmp_path)
    checkpointer.commit({"s": (ListSource([]), AT)}, {})
    other = ListSource([])
    assert checkpointer.open_source("s", other, resume=False) is None
    assert other.position is None
    checkpointer.commit({"s": (other, AT)}, {})
    assert other.committed == [AT]
    assert commits_of(checkpointer) == 2


class OutboxSink(ListSink):
    """A sink that writes no file."""

    continues = None  # type: ignore[assignment]


def test_outputs_of_a_removed_sink_are_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log names their number; outputs of other sinks are kept."""
    gone, stays = ListSink(), ListSink()
    checkpointer = checkpointer_of(tmp_path)
    gone.answer = stays.answer = FlushResult(unacked=[OutboxRow("t", b"p", "k", 1), OutboxRow("t", b"p", "k", 2)])
    checkpointer.commit({}, {"gone": gone, "stays": stays})
    checkpointer.close()
    checkpointer = Checkpointer(model(), Store(tmp_path))
    checkpointer.recover({}, {"stays": OutboxSink()})
    assert "sink gone: no longer configured; 2 unacknowledged outputs are deleted" in caplog.text
    assert checkpointer.store is not None
    assert checkpointer.store.outputs_waiting() == {"stays": 2}


def test_outputs_of_a_sink_that_is_now_a_file_are_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing would ever send them."""
    sink = ListSink()
    checkpointer = checkpointer_of(tmp_path / "state")
    sink.answer = FlushResult(unacked=[OutboxRow("t", b"p", "k", 1)])
    checkpointer.commit({}, {"out": sink})
    checkpointer.close()
    checkpointer = Checkpointer(model(), Store(tmp_path / "state"))
    file = file_sink(tmp_path / "out.jsonl", append=True)
    checkpointer.recover({}, {"out": file})
    file.close()
    assert "sink out: now a file; 1 unacknowledged outputs are deleted" in caplog.text
    assert checkpointer.store is not None
    assert checkpointer.store.outputs_waiting() == {}


def test_a_source_that_is_no_longer_configured_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its position is kept for the time that it comes back."""
    checkpointer = checkpointer_of(tmp_path)
    checkpointer.commit({"old": (ListSource([]), AT)}, {})
    checkpointer.close()
    checkpointer = Checkpointer(model(), Store(tmp_path))
    checkpointer.recover({"new": ListSource([])}, {})
    assert "source old: no longer configured" in caplog.text
    assert checkpointer.store is not None
    assert checkpointer.store.positions() == {"old": AT}


# ---- errors


def test_nothing_is_acknowledged_when_the_store_fails(tmp_path: Path) -> None:
    """No source is acknowledged, no sink is released, and the error is raised."""
    source, sink = PacketSource(), ListSink()
    checkpointer = checkpointer_of(tmp_path)
    feed(checkpointer, "a", 1, 2)
    assert checkpointer.store is not None
    assert checkpointer.store._connection is not None
    checkpointer.store._connection.execute("PRAGMA query_only=ON")
    for words in ("readonly database; nothing is acknowledged", "not open"):
        with pytest.raises(StoreError, match=words):
            checkpointer.commit({"s": (source, AT)}, {"f": sink})
    assert (source.committed, sink.calls) == ([], ["flush", "flush"])
    assert not checkpointer.healthy
    checkpointer.close()
    assert store_content(tmp_path)["stream"] == []


def test_nothing_is_acknowledged_when_a_sink_cannot_be_flushed(tmp_path: Path) -> None:
    """Nothing is written, and no other sink releases its outputs."""
    source, well, ill = ListSource([]), ListSink(), ListSink("flush", SinkUnavailable("disk full"))
    checkpointer = checkpointer_of(tmp_path)
    feed(checkpointer, "a", 1, 2)
    with pytest.raises(SinkUnavailable):
        checkpointer.commit({"s": (source, AT)}, {"well": well, "ill": ill})
    assert (source.committed, commits_of(checkpointer)) == ([], 0)
    assert "committed" not in well.calls


def test_uncommitted_samples_are_gone_after_a_kill(tmp_path: Path) -> None:
    """The state is that of the last commit."""
    checkpointer = checkpointer_of(tmp_path / "a")
    feed(checkpointer, "a", 1, 2, 3)
    checkpointer.commit({}, {})
    committed = table_rows(checkpointer._pipeline)
    feed(checkpointer, "a", 4)
    feed(checkpointer, "b", 1)
    again = model()
    checkpointer_of(copy_of_now(tmp_path / "a", tmp_path / "b"), again)
    assert table_rows(again) == committed


# ---- component states


def test_component_states_return_to_the_component_of_their_name(tmp_path: Path) -> None:
    """Also states that belong to no stream, and those of a name without a row; deleted ones stay deleted."""
    part, shared = notes(a="x", b="y"), notes()
    shared.put("", Note("gate"))
    checkpointer = checkpointer_of(tmp_path, parts={"p": part}, shared={"g": shared})
    checkpointer.commit({}, {})
    part.put("b", Note("newer"))
    part._records.pop("a")
    part.touch("a")
    checkpointer.commit({}, {})
    checkpointer.close()
    part, shared = notes(), notes()
    checkpointer_of(tmp_path, parts={"p": part}, shared={"g": shared})
    assert (read_of(part), read_of(shared)) == ({"b": "newer"}, {"": "gate"})
    assert part.dirty_keys() == shared.dirty_keys() == ()


def test_states_of_a_removed_component_are_deleted(tmp_path: Path) -> None:
    """A later component of the same name starts without them."""
    checkpointer = checkpointer_of(tmp_path, parts={"p": notes(a="old")})
    checkpointer.commit({}, {})
    checkpointer.close()
    checkpointer = checkpointer_of(tmp_path)
    checkpointer.commit({}, {})
    checkpointer.close()
    part = notes()
    checkpointer_of(tmp_path, parts={"p": part})
    assert read_of(part) == {}


def test_a_component_that_replaces_another_starts_empty(tmp_path: Path) -> None:
    """Only its own states are stored under the name."""
    checkpointer = checkpointer_of(tmp_path, parts={"p": notes(a="old", b="old")})
    checkpointer.commit({}, {})
    checkpointer.discard_component("p")
    checkpointer.set_components({"p": notes(b="new")}, {})
    checkpointer.commit({}, {})
    assert checkpointer.store is not None
    assert list(checkpointer.store.states_of_component("p")) == ["b"]


# ---- damage


def test_a_damaged_row_resets_its_stream_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The stream is reset with this reason at its next sample, counted and logged; the others continue."""
    checkpointer = checkpointer_of(tmp_path)
    for name in "abc":
        feed(checkpointer, name, 1, 2)
    checkpointer.commit({}, {})
    before = table_rows(checkpointer._pipeline)
    checkpointer.close()
    change_store(tmp_path, "UPDATE stream SET crc=crc+1 WHERE name='b'")
    pipeline = model()
    checkpointer = checkpointer_of(tmp_path, pipeline)
    after = table_rows(pipeline)
    assert (after["a"], after["c"]) == (before["a"], before["c"])
    assert checkpointer.counts.damaged == 1
    assert "stream b: stored state cannot be used: wrong checksum; the stream is reset" in caplog.text
    out = pipeline.process(batch(["a", "b", "c"], [3, 3, 3]))
    assert out.resets == {ResetReason.STATE_DAMAGED: 1}
    assert [ResetReason(int(reason)) for reason in out.reset] == [
        ResetReason.NONE, ResetReason.STATE_DAMAGED, ResetReason.NONE,
    ]  # fmt: skip


def test_a_reset_for_damage_survives_another_restart(tmp_path: Path) -> None:
    """After the next commit the row is valid, and the reason is kept."""
    checkpointer = checkpointer_of(tmp_path)
    feed(checkpointer, "a", 1)
    checkpointer.commit({}, {})
    checkpointer.close()
    change_store(tmp_path, "UPDATE stream SET row=x'00'")
    checkpointer = checkpointer_of(tmp_path)
    checkpointer.commit({}, {})
    checkpointer.close()
    pipeline = model()
    checkpointer = checkpointer_of(tmp_path, pipeline)
    assert checkpointer.counts.damaged == 0
    assert pipeline.process(batch(["a"], [1])).resets == {ResetReason.STATE_DAMAGED: 1}


@pytest.mark.parametrize("form", ["", "rubbish", '{"model_id": "test-0"}'])
def test_a_row_with_an_invalid_schema_is_damaged(tmp_path: Path, form: str) -> None:
    """Although all checksums are right."""
    with opened(tmp_path) as store:
        store.write(Commit(schema=form, streams=[("a", b"row")]))
    checkpointer = checkpointer_of(tmp_path)
    assert checkpointer.counts.damaged == 1


def test_a_row_of_another_length_is_damaged(tmp_path: Path) -> None:
    """Its schema is valid but does not fit."""
    with opened(tmp_path) as store:
        store.write(Commit(schema=model().row_schema.text, streams=[("a", b"row")]))
    checkpointer = checkpointer_of(tmp_path)
    assert checkpointer.counts.damaged == 1


@pytest.mark.parametrize("text", ["crc=crc+1", "data=x'93', crc=0"])
def test_a_damaged_component_state_is_lost_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """The component continues without it; it is counted and logged."""
    checkpointer = checkpointer_of(tmp_path, parts={"p": notes(a="x", b="y")})
    checkpointer.commit({}, {})
    checkpointer.close()
    change_store(tmp_path, f"UPDATE component_state SET {text} WHERE key='a'")  # noqa: S608
    part = notes()
    checkpointer = checkpointer_of(tmp_path, parts={"p": part})
    assert read_of(part) == {"b": "y"}
    assert checkpointer.counts.damaged == 1
    assert "stream a: stored state of p cannot be used: wrong checksum" in caplog.text


def test_a_component_state_of_another_form_is_lost_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its checksum is right; a state that belongs to no stream is logged as one of all streams."""
    with opened(tmp_path) as store:
        store.write(Commit(component_states=[("g", "", b"\x93"), ("g", "b", b"\x91\xa1y")]))
    part = notes()
    checkpointer = checkpointer_of(tmp_path, shared={"g": part})
    assert (read_of(part), checkpointer.counts.damaged) == ({"b": "y"}, 1)
    assert "all streams: stored state of g cannot be used" in caplog.text


def test_many_damaged_rows_do_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten are logged, then one line names the metric; all are counted."""
    with opened(tmp_path) as store:
        store.write(Commit(schema="", streams=[(f"s{number}", b"") for number in range(30)]))
    with caplog.at_level(logging.ERROR):
        checkpointer = checkpointer_of(tmp_path)
    assert checkpointer.counts.damaged == 30
    assert len(caplog.records) == 11
    assert "stream_gru_states_damaged_total" in caplog.text


def test_a_damaged_file_is_replaced_by_an_empty_store(tmp_path: Path) -> None:
    """The daemon starts; the store knows where the damaged file is."""
    (tmp_path / "state.db").write_bytes(b"rubbish" * 1000)
    checkpointer = checkpointer_of(tmp_path)
    assert checkpointer._pipeline.streams == ()
    assert checkpointer.store is not None
    assert checkpointer.store.moved_aside is not None


# ---- starts


def test_a_start_logs_an_unclean_shutdown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the commit, and how many streams are resumed."""
    checkpointer = checkpointer_of(tmp_path)
    feed(checkpointer, "a", 1)
    feed(checkpointer, "b", 1)
    checkpointer.commit({}, {})
    checkpointer.mark_clean_shutdown()
    checkpointer.close()
    change_store(tmp_path, "UPDATE stream SET row=x'' WHERE name='a'")
    with caplog.at_level(logging.INFO):
        checkpointer_of(tmp_path).close()
        checkpointer = checkpointer_of(tmp_path)
        assert "the last run was killed" not in caplog.text
        assert "1 streams resumed, 1 reset" in caplog.text
        checkpointer.commit({}, {})
        checkpointer.close()
        checkpointer_of(tmp_path).close()
        assert "unclean shutdown; resuming from commit 2" in caplog.text
