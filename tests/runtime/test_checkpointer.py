"""The keeper: what a commit makes durable, in which order it tells whom, and how all of it comes back."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from msgspec import Struct

from stream_gru.core.commit_records import FileOffset, FlushResult, OutboxRow, ProcessedPackets
from stream_gru.core.errors import SinkUnavailable, StoreError
from stream_gru.core.keyed_state import KeyedState
from stream_gru.core.types import Position, ResetReason
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.store import Commit, Store
from tests.support.batches import batch
from tests.support.fake_connectors import ListSink, ListSource, PacketSource
from tests.support.stores import change, copy_of_now, feed, keeper_of, model, opened, store_content, table_rows

AT = Position("a", 5)


class Note(Struct, array_like=True):
    """What the part of these tests remembers."""

    text: str


def notes(**records: str) -> KeyedState[Note]:
    """A part that remembers these."""
    part: KeyedState[Note] = KeyedState(Note, "notes")
    for name, text in records.items():
        part.put(name, Note(text))
    return part


def read_of(part: KeyedState[Note]) -> dict[str, str]:
    """What it remembers of some names."""
    return {name: note.text for name in ("a", "b", "c", "d", "") if (note := part.get(name)) is not None}


def changes_of(keeper: Checkpointer) -> int:
    """How many commits the store has."""
    assert keeper.store is not None
    return keeper.store.commit_no


# ---- the commit


def test_all_is_told_in_the_one_safe_order(tmp_path: Path) -> None:
    """Outputs are flushed, one transaction, outputs are let out, and only then inputs are acknowledged."""
    told: list[str] = []
    source, one, two = PacketSource(), ListSink(), ListSink()
    for name, part in (("source", source), ("one", one), ("two", two)):
        part.on_call = lambda call, name=name: told.append(f"{name} {call}")  # type: ignore[misc]

    class Telling(Store):
        def write(self, changes: Commit) -> None:
            told.append("write")
            super().write(changes)

    keeper = Checkpointer(model(), Telling(tmp_path))
    keeper.recover({"s": source}, {"one": one, "two": two})
    assert told == ["one open", "two open", "source resume", "source open"]
    told.clear()
    feed(keeper, "a", 1, 2)
    keeper.commit({"s": (source, AT)}, {"one": one, "two": two})
    assert told == [
        "one flush", "two flush", "source receipts", "write", "one committed", "two committed", "source commit",
    ]  # fmt: skip
    assert source.committed == [AT]


def test_without_a_store_a_commit_is_the_same_but_for_the_transaction() -> None:
    """Sinks open on nothing, are flushed and told; sources are acknowledged."""
    source, sink = PacketSource(), ListSink()
    keeper = Checkpointer(model())
    assert keeper.recover({"s": source}, {"f": sink}) == {}
    assert (sink.kept, source.packets, source.position) == (None, None, None)
    feed(keeper, "a", 1, 2)
    keeper.commit({"s": (source, AT)}, {"f": sink})
    assert sink.calls == ["open", "flush", "committed"]
    assert source.committed == [AT]
    assert not keeper.healthy
    keeper.mark_clean_shutdown()
    keeper.close()


def test_an_idle_commit_writes_nothing(tmp_path: Path) -> None:
    """While nothing is read nothing is written or acknowledged, though sinks are asked and told each time."""
    source, sink, part = PacketSource(), ListSink(), notes(a="x")
    keeper = keeper_of(tmp_path, parts={"p": part})
    read = {"s": (source, AT), "never read": (ListSource([]), None)}
    feed(keeper, "a", 1, 2)
    for _ in range(3):
        keeper.commit(read, {"f": sink})
    assert (changes_of(keeper), keeper.counts.commits) == (1, 1)
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
def test_what_a_sink_has_to_say_is_written_once(tmp_path: Path, written: FlushResult) -> None:
    """Each part of it alone is news; the same mark again is none."""
    sink = ListSink()
    keeper = keeper_of(tmp_path)
    for _ in range(2):
        sink.answer = FlushResult(file_offset=written.file_offset) if sink.calls else written
        keeper.commit({}, {"f": sink})
    assert changes_of(keeper) == 1


def test_sinks_and_sources_go_on_where_the_last_commit_left_them(tmp_path: Path) -> None:
    """The file offset, outputs that wait, position and packets come back to those of the same names."""
    sink, source = ListSink(), PacketSource()
    keeper = keeper_of(tmp_path / "a")
    row = OutboxRow("t", b"p", "k", 3)
    sink.answer = FlushResult(FileOffset("f", 7, "d"), [row])
    source.said = ProcessedPackets({9: b"nine"})
    keeper.commit({"s": (source, AT)}, {"f": sink})
    keeper.close()

    sink, source, other = ListSink(), PacketSource(), PacketSource()
    keeper = Checkpointer(model(), Store(tmp_path / "a"))
    assert keeper.recover({"s": source, "t": other}, {"f": sink}) == {"s": AT}
    assert sink.kept is not None
    assert (sink.kept.file_offset, list(sink.kept.unacked), sink.kept.last_number) == (
        FileOffset("f", 7, "d"),
        [row],
        3,
    )
    assert (source.packets, source.position, other.packets, other.position) == ({9: b"nine"}, AT, {}, None)
    sink.answer = FlushResult(file_offset=FileOffset("f", 7, "d"))
    keeper.commit({"s": (source, AT)}, {"f": sink})
    assert (changes_of(keeper), source.committed) == (1, [])  # nothing of that is news


def test_a_lost_session_is_written_and_told_though_nothing_was_read(tmp_path: Path) -> None:
    """The position is the same, but what is known of packets is void."""
    source = PacketSource()
    keeper = keeper_of(tmp_path)
    source.said = ProcessedPackets({9: b"nine"})
    keeper.commit({"s": (source, AT)}, {})
    source.said = ProcessedPackets(new_session=True)
    keeper.commit({"s": (source, AT)}, {})
    assert keeper.store is not None
    assert keeper.store.packets("s") == {}
    assert source.committed == [AT, AT]


def test_a_source_that_is_opened_anew_may_begin_at_its_beginning(tmp_path: Path) -> None:
    """After a reload another input may have the same name: its first commit is news, whatever its position."""
    keeper = keeper_of(tmp_path)
    keeper.commit({"s": (ListSource([]), AT)}, {})
    other = ListSource([])
    assert keeper.open_source("s", other, resume=False) is None
    assert other.position is None
    keeper.commit({"s": (other, AT)}, {})
    assert other.committed == [AT]
    assert changes_of(keeper) == 2


def test_outputs_of_a_sink_that_is_gone_are_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log says how many; those of others are kept."""
    gone, stays = ListSink(), ListSink()
    keeper = keeper_of(tmp_path)
    gone.answer = stays.answer = FlushResult(unacked=[OutboxRow("t", b"p", "k", 1), OutboxRow("t", b"p", "k", 2)])
    keeper.commit({}, {"gone": gone, "stays": stays})
    keeper.close()
    keeper = Checkpointer(model(), Store(tmp_path))
    keeper.recover({}, {"stays": ListSink()})
    assert "sink gone: no longer configured; 2 unacknowledged outputs are deleted" in caplog.text
    assert keeper.store is not None
    assert keeper.store.outputs_waiting() == {"stays": 2}


# ---- errors


def test_nothing_is_acknowledged_when_the_store_fails(tmp_path: Path) -> None:
    """Neither a source nor a sink hears of a commit, and the error comes out."""
    source, sink = PacketSource(), ListSink()
    keeper = keeper_of(tmp_path)
    feed(keeper, "a", 1, 2)
    assert keeper.store is not None
    assert keeper.store._connection is not None
    keeper.store._connection.execute("PRAGMA query_only=ON")
    for words in ("readonly database; nothing is acknowledged", "not open"):
        with pytest.raises(StoreError, match=words):
            keeper.commit({"s": (source, AT)}, {"f": sink})
    assert (source.committed, sink.calls) == ([], ["flush", "flush"])
    assert not keeper.healthy
    keeper.close()
    assert store_content(tmp_path)["stream"] == []


def test_nothing_is_acknowledged_when_a_sink_cannot_be_flushed(tmp_path: Path) -> None:
    """Nothing is written either, and no other sink lets out what it has."""
    source, well, ill = ListSource([]), ListSink(), ListSink("flush", SinkUnavailable("disk full"))
    keeper = keeper_of(tmp_path)
    feed(keeper, "a", 1, 2)
    with pytest.raises(SinkUnavailable):
        keeper.commit({"s": (source, AT)}, {"well": well, "ill": ill})
    assert (source.committed, changes_of(keeper)) == ([], 0)
    assert "committed" not in well.calls


def test_what_was_not_committed_is_not_there_after_a_kill(tmp_path: Path) -> None:
    """The state after it is that of the last commit."""
    keeper = keeper_of(tmp_path / "a")
    feed(keeper, "a", 1, 2, 3)
    keeper.commit({}, {})
    committed = table_rows(keeper._pipeline)
    feed(keeper, "a", 4)
    feed(keeper, "b", 1)
    again = model()
    keeper_of(copy_of_now(tmp_path / "a", tmp_path / "b"), again)
    assert table_rows(again) == committed


# ---- what other parts remember


def test_memories_come_back_to_the_part_of_their_name(tmp_path: Path) -> None:
    """Also of what is no stream, and of a name that has no row; what a part let go of is deleted."""
    part, shared = notes(a="x", b="y"), notes()
    shared.put("", Note("gate"))
    keeper = keeper_of(tmp_path, parts={"p": part}, shared={"g": shared})
    keeper.commit({}, {})
    part.put("b", Note("newer"))
    part._records.pop("a")
    part.touch("a")
    keeper.commit({}, {})
    keeper.close()
    part, shared = notes(), notes()
    keeper_of(tmp_path, parts={"p": part}, shared={"g": shared})
    assert (read_of(part), read_of(shared)) == ({"b": "newer"}, {"": "gate"})
    assert part.dirty_keys() == shared.dirty_keys() == ()


def test_memories_of_a_part_that_is_no_more_are_dropped(tmp_path: Path) -> None:
    """A part of that name that comes later does not go on with them."""
    keeper = keeper_of(tmp_path, parts={"p": notes(a="old")})
    keeper.commit({}, {})
    keeper.close()
    keeper = keeper_of(tmp_path)
    keeper.commit({}, {})
    keeper.close()
    part = notes()
    keeper_of(tmp_path, parts={"p": part})
    assert read_of(part) == {}


def test_a_part_that_takes_the_place_of_another_begins_with_nothing(tmp_path: Path) -> None:
    """Only what the new one remembers is stored under the name."""
    keeper = keeper_of(tmp_path, parts={"p": notes(a="old", b="old")})
    keeper.commit({}, {})
    keeper.discard_component("p")
    keeper.set_components({"p": notes(b="new")}, {})
    keeper.commit({}, {})
    assert keeper.store is not None
    assert list(keeper.store.states_of_component("p")) == ["b"]


# ---- what is damaged


def test_a_damaged_row_resets_its_stream_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It begins anew for this reason at its next sample; the others go on; it is counted and named."""
    keeper = keeper_of(tmp_path)
    for name in "abc":
        feed(keeper, name, 1, 2)
    keeper.commit({}, {})
    before = table_rows(keeper._pipeline)
    keeper.close()
    change(tmp_path, "UPDATE stream SET crc=crc+1 WHERE name='b'")
    pipeline = model()
    keeper = keeper_of(tmp_path, pipeline)
    after = table_rows(pipeline)
    assert (after["a"], after["c"]) == (before["a"], before["c"])
    assert keeper.counts.damaged == 1
    assert "stream b: stored state cannot be used: wrong checksum; the stream is reset" in caplog.text
    out = pipeline.process(batch(["a", "b", "c"], [3, 3, 3]))
    assert out.resets == {ResetReason.STATE_DAMAGED: 1}
    assert [ResetReason(int(reason)) for reason in out.reset] == [
        ResetReason.NONE, ResetReason.STATE_DAMAGED, ResetReason.NONE,
    ]  # fmt: skip


def test_a_stream_that_begins_anew_is_stored_as_such(tmp_path: Path) -> None:
    """After the next commit it is damaged no more, and its reason outlives another restart."""
    keeper = keeper_of(tmp_path)
    feed(keeper, "a", 1)
    keeper.commit({}, {})
    keeper.close()
    change(tmp_path, "UPDATE stream SET row=x'00'")
    keeper = keeper_of(tmp_path)
    keeper.commit({}, {})
    keeper.close()
    pipeline = model()
    keeper = keeper_of(tmp_path, pipeline)
    assert keeper.counts.damaged == 0
    assert pipeline.process(batch(["a"], [1])).resets == {ResetReason.STATE_DAMAGED: 1}


@pytest.mark.parametrize("form", ["", "rubbish", '{"model_id": "test-0"}'])
def test_a_row_without_a_form_is_damaged(tmp_path: Path, form: str) -> None:
    """Whatever stands in the place of its form, though the checksums are right."""
    with opened(tmp_path) as store:
        store.write(Commit(schema=form, streams=[("a", b"row")]))
    keeper = keeper_of(tmp_path)
    assert keeper.counts.damaged == 1


def test_a_row_of_another_length_is_damaged(tmp_path: Path) -> None:
    """Its form is read, and does not fit."""
    with opened(tmp_path) as store:
        store.write(Commit(schema=model().row_schema.text, streams=[("a", b"row")]))
    keeper = keeper_of(tmp_path)
    assert keeper.counts.damaged == 1


@pytest.mark.parametrize("text", ["crc=crc+1", "data=x'93', crc=0"])
def test_a_damaged_memory_is_lost_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """The part goes on without it; it is counted and named."""
    keeper = keeper_of(tmp_path, parts={"p": notes(a="x", b="y")})
    keeper.commit({}, {})
    keeper.close()
    change(tmp_path, f"UPDATE component_state SET {text} WHERE key='a'")  # noqa: S608
    part = notes()
    keeper = keeper_of(tmp_path, parts={"p": part})
    assert read_of(part) == {"b": "y"}
    assert keeper.counts.damaged == 1
    assert "stream a: stored state of p cannot be used: wrong checksum" in caplog.text


def test_a_memory_that_its_part_cannot_read_is_lost_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its checksum is right, its form is another one; what is of no stream is named so."""
    with opened(tmp_path) as store:
        store.write(Commit(component_states=[("g", "", b"\x93"), ("g", "b", b"\x91\xa1y")]))
    part = notes()
    keeper = keeper_of(tmp_path, shared={"g": part})
    assert (read_of(part), keeper.counts.damaged) == ({"b": "y"}, 1)
    assert "all streams: stored state of g cannot be used" in caplog.text


def test_many_damaged_rows_do_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten are named, then one line says where to look; all are counted."""
    with opened(tmp_path) as store:
        store.write(Commit(schema="", streams=[(f"s{number}", b"") for number in range(30)]))
    with caplog.at_level(logging.ERROR):
        keeper = keeper_of(tmp_path)
    assert keeper.counts.damaged == 30
    assert len(caplog.records) == 11
    assert "stream_gru_states_damaged_total" in caplog.text


def test_a_damaged_file_is_an_empty_store(tmp_path: Path) -> None:
    """The daemon starts; the keeper's store tells where the old one is."""
    (tmp_path / "state.db").write_bytes(b"rubbish" * 1000)
    keeper = keeper_of(tmp_path)
    assert keeper._pipeline.streams == ()
    assert keeper.store is not None
    assert keeper.store.moved_aside is not None


# ---- starts


def test_a_start_says_whether_the_last_run_was_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And behind which commit it goes on, and how many streams do."""
    keeper = keeper_of(tmp_path)
    feed(keeper, "a", 1)
    feed(keeper, "b", 1)
    keeper.commit({}, {})
    keeper.mark_clean_shutdown()
    keeper.close()
    change(tmp_path, "UPDATE stream SET row=x'' WHERE name='a'")
    with caplog.at_level(logging.INFO):
        keeper_of(tmp_path).close()
        keeper = keeper_of(tmp_path)
        assert "the last run was killed" not in caplog.text
        assert "1 streams resumed, 1 reset" in caplog.text
        keeper.commit({}, {})
        keeper.close()
        keeper_of(tmp_path).close()
        assert "unclean shutdown; resuming from commit 2" in caplog.text
