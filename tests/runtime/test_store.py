"""The store: a commit is complete after a kill or a clean end, or nothing of it is there."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from stream_gru.core.commit_records import FileOffset, OutboxRow, ProcessedPackets, SinkCheckpoint
from stream_gru.core.errors import StoreError
from stream_gru.core.types import Position
from stream_gru.runtime.checkpoint.commit import Commit, StoredRow
from stream_gru.runtime.checkpoint.store import FILE_NAME, Store
from tests.support.stores import change_store, copy_of_now, opened, store_content

FULL = Commit(
    schema="form one",
    streams=[("b", b"row of b"), ("a", b"row of a")],
    component_states=[("clock:s", "a", b"twelve"), ("gate", "", b"")],
    positions={"s": Position("file.csv", 2**40, "check"), "t": Position("t", 1)},
    processed_packets={"s": ProcessedPackets({7: b"seven", 3: b"three"})},
    file_offsets={"file": FileOffset("out.jsonl", 99, "detail")},
    unacked={"mqtt": [OutboxRow("topic", b"payload", "a/1", 1), OutboxRow("topic", b"more", "a/2", 2)]},
    numbers={"lucky": 7},
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Return an open store."""
    with opened(tmp_path / "state") as store:
        yield store


def assert_full(store: Store) -> None:
    """Assert that all of `FULL` is there."""
    assert list(store.rows()) == [StoredRow(name, "form one", b"row of " + name.encode(), 1) for name in "ab"]
    assert store.states_of_stream("a") == {"clock:s": b"twelve"}
    assert store.states_of_component("gate") == {"": b""}
    assert sorted(store.components()) == ["clock:s", "gate"]
    assert store.positions() == FULL.positions
    assert list(store.packets("s").items()) == [(7, b"seven"), (3, b"three")]
    assert store.sink_checkpoint("file") == SinkCheckpoint(FileOffset("out.jsonl", 99, "detail"), [], 0)
    assert store.sink_checkpoint("mqtt") == SinkCheckpoint(None, FULL.unacked["mqtt"], 2)
    assert store.outputs_waiting() == {"mqtt": 2}
    assert store.value("lucky", 0) == 7
    assert (store.commit_no, store.count(), store.count_known(), store.names()) == (1, 2, 3, ["a", "b"])


def test_a_commit_survives_a_kill(store: Store, tmp_path: Path) -> None:
    """It is on the disk when `write` returns; the next start reports an unclean shutdown."""
    store.write(FULL)
    assert_full(store)
    with opened(copy_of_now(tmp_path / "state", tmp_path / "killed")) as again:
        assert_full(again)
        assert not again.clean_shutdown
        assert again.moved_aside is None


def test_a_commit_survives_a_clean_end(tmp_path: Path) -> None:
    """Closed and opened again, the content is equal; a clean shutdown is known, but only of the last run."""
    with opened(tmp_path) as store:
        assert store.clean_shutdown
        store.write(FULL)
        store.mark_clean_shutdown()
    for _ in range(2):  # a store that is opened, and commits nothing, is no run
        with opened(tmp_path) as store:
            assert_full(store)
            assert store.clean_shutdown
    with opened(tmp_path) as store:
        store.write(Commit(numbers={"n": 1}))
    for _ in range(2):
        with opened(tmp_path) as store:
            assert not store.clean_shutdown
    with opened(tmp_path) as store:
        store.mark_clean_shutdown()
        store.write(Commit(numbers={"n": 2}))
    with opened(tmp_path) as store:
        assert not store.clean_shutdown


def test_an_empty_store_has_defaults(store: Store) -> None:
    """Values never written are absent, not an error."""
    assert (list(store.rows()), store.row("a"), store.states_of_stream("a"), store.states_of_component("p")) == (
        [],
        None,
        {},
        {},
    )
    assert (store.positions(), store.packets("s"), store.value("n", 5)) == ({}, {}, 5)
    assert store.sink_checkpoint("file") == SinkCheckpoint(None, [], 0)
    assert (store.components(), store.names(), store.count(), store.count_known(), store.commit_no) == ([], [], 0, 0, 0)
    assert store.outputs_waiting() == {}


def test_later_commits_replace_what_has_changed_and_leave_the_rest(store: Store) -> None:
    """The newest of each name counts; streams are in the order of their commits."""
    store.write(FULL)
    store.write(
        Commit(
            schema="form two",
            streams=[("a", b"newer")],
            component_states=[("clock:s", "a", None), ("gate", "", b"closed")],
            positions={"s": Position("next.csv", 0)},
            file_offsets={"file": FileOffset("out.jsonl", 150)},
            unacked={"mqtt": [OutboxRow("topic", b"third", "a/3", 3)]},
            acked={"mqtt": [1]},
        )
    )
    assert [(row.name, row.schema, row.row, row.commit_no) for row in store.rows()] == [
        ("b", "form one", b"row of b", 1),
        ("a", "form two", b"newer", 2),
    ]
    assert store.row("a") == StoredRow("a", "form two", b"newer", 2)
    assert store.states_of_stream("a") == {}
    assert store.states_of_component("gate") == {"": b"closed"}
    assert store.positions() == {"s": Position("next.csv", 0), "t": Position("t", 1)}
    assert store.sink_checkpoint("file").file_offset == FileOffset("out.jsonl", 150)
    kept = store.sink_checkpoint("mqtt")
    assert ([one.number for one in kept.unacked], kept.last_number) == ([2, 3], 3)


def test_output_numbers_continue_when_all_are_acknowledged(store: Store) -> None:
    """The highest number is kept after its output is deleted."""
    store.write(FULL)
    store.write(Commit(acked={"mqtt": [1, 2]}, unacked={"mqtt": []}))
    assert store.sink_checkpoint("mqtt") == SinkCheckpoint(None, [], 2)


def test_the_newest_streams_are_those_of_the_last_commits(store: Store) -> None:
    """A few of many are read, in the order of their commits."""
    for number in range(5):
        store.write(Commit(schema="f", streams=[(f"s{number}", b"")]))
    store.write(Commit(schema="f", streams=[("s1", b"")]))
    assert [row.name for row in store.rows(3)] == ["s3", "s4", "s1"]


def test_states_of_a_discarded_component_are_deleted_before_new_ones_are_written(store: Store) -> None:
    """A component of the same name starts without the old ones."""
    store.write(Commit(component_states=[("p", "a", b"1"), ("p", "b", b"2"), ("q", "a", b"3")]))
    store.write(Commit(component_states=[("p", "b", b"new")], discarded_components=["p"]))
    assert (store.states_of_component("p"), store.states_of_component("q")) == ({"b": b"new"}, {"a": b"3"})


def test_a_file_may_have_any_name(store: Store) -> None:
    """Also one that is not UTF-8."""
    strange = Position(b"m\xe4rz \xe2\x82\xac.csv".decode(errors="surrogateescape"), 5)
    store.write(Commit(positions={"s": strange}))
    assert store.positions() == {"s": strange}


def test_packets_are_in_the_order_of_their_last_commit(store: Store) -> None:
    """A reused identifier counts as new; each source has its own."""
    store.write(
        Commit(processed_packets={"s": ProcessedPackets({1: b"a", 2: b"b", 3: b"c"}), "t": ProcessedPackets({1: b"t"})})
    )
    store.write(Commit(processed_packets={"s": ProcessedPackets({1: b"A"})}))
    assert list(store.packets("s").items()) == [(2, b"b"), (3, b"c"), (1, b"A")]
    assert store.packets("t") == {1: b"t"}


def test_a_new_session_deletes_all_earlier_packets(store: Store) -> None:
    """It keeps packets of the same commit, and those of other sources."""
    store.write(Commit(processed_packets={"s": ProcessedPackets({1: b"a", 2: b"b"}), "t": ProcessedPackets({1: b"t"})}))
    store.write(Commit(processed_packets={"s": ProcessedPackets({5: b"e"}, new_session=True)}))
    assert (store.packets("s"), store.packets("t")) == ({5: b"e"}, {1: b"t"})


def test_packets_of_any_number_are_kept(store: Store) -> None:
    """As many as there are identifiers, however often they wrap around, and no more."""
    ids = range(1, 65_536)
    for turn in range(2):
        store.write(Commit(processed_packets={"s": ProcessedPackets({id_: b"%d %d" % (turn, id_) for id_ in ids})}))
    assert store.packets("s") == {id_: b"1 %d" % id_ for id_ in ids}


def test_packets_keep_their_order_across_a_start(tmp_path: Path) -> None:
    """And across a new session."""
    with opened(tmp_path) as store:
        packets = {"s": ProcessedPackets({3: b"c", 2: b"b"}), "t": ProcessedPackets({1: b"t"})}
        store.write(Commit(processed_packets=packets))
    with opened(tmp_path) as store:
        store.write(Commit(processed_packets={"s": ProcessedPackets({1: b"a"})}))
        store.write(Commit(processed_packets={"t": ProcessedPackets({9: b"x"}, new_session=True)}))
        store.write(Commit(processed_packets={"t": ProcessedPackets({8: b"y"}), "new": ProcessedPackets({5: b"z"})}))
    with opened(tmp_path) as store:
        assert [list(store.packets(source)) for source in ("s", "t", "new")] == [[3, 2, 1], [9, 8], [5]]


def test_packets_beyond_the_limit_are_forgotten(store: Store) -> None:
    """The oldest first."""
    for number in range(1, 6):
        store.write(Commit(processed_packets={"s": ProcessedPackets({number: b"x"}, limit=3)}))
    assert list(store.packets("s")) == [3, 4, 5]


def test_the_log_of_a_huge_commit_does_not_stay_huge(store: Store) -> None:
    """Once it is checkpointed into the file, the next commit truncates it."""
    log = store.path.with_name("state.db-wal")
    store.write(Commit(schema="f", streams=[(f"s{number}", bytes(3000)) for number in range(25_000)]))
    assert log.stat().st_size > 100_000_000
    for number in range(2):
        store.write(Commit(numbers={"n": number}))
    assert log.stat().st_size < 70_000_000


@pytest.mark.parametrize(
    "changes",
    [
        Commit(streams=FULL.streams),
        Commit(component_states=FULL.component_states),
        Commit(positions=FULL.positions),
        Commit(processed_packets=FULL.processed_packets),
        Commit(file_offsets=FULL.file_offsets),
        Commit(unacked=FULL.unacked),
        Commit(acked={"mqtt": [1]}),
        Commit(numbers=FULL.numbers),
        Commit(discarded_components=["p"]),
        Commit(deleted_streams=["a"]),
    ],
)
def test_each_field_alone_makes_a_commit(changes: Commit) -> None:
    """An empty commit is false: nothing is written for it."""
    assert changes
    assert not Commit(schema="a form alone says nothing", texts={"nor": "a text"})


def test_of_a_hundred_thousand_streams_only_changed_ones_are_written(store: Store) -> None:
    """A commit writes one row to the log."""
    store.write(Commit(schema="f", streams=[(f"s{number}", b"r" * 100) for number in range(100_000)]))
    connection = store._connection
    assert connection is not None
    before = connection.total_changes
    store.write(Commit(schema="f", streams=[(f"s{number}", b"R" * 100) for number in range(0, 100_000, 10_000)]))
    assert connection.total_changes - before == 1
    assert store.count() == 100_000


def test_deleting_on_request(store: Store) -> None:
    """Outputs of a sink, the position of a source, a stream with its component states; nothing else."""
    store.write(FULL)
    store.delete_outbox("mqtt")
    store.delete_position("s")
    store.delete_streams(["a", "unknown"])
    assert store.outputs_waiting() == {}
    assert store.positions() == {"t": Position("t", 1)}
    assert (store.names(), store.row("a"), store.states_of_stream("a")) == (["b"], None, {})
    assert store.states_of_component("gate") == {"": b""}
    assert store.sink_checkpoint("mqtt").last_number == 2


def test_streams_are_deleted_all_or_none(tmp_path: Path) -> None:
    """A kill before the end leaves all of them."""
    with opened(tmp_path / "a") as store:
        store.write(FULL)
        assert store.count() == 2
        store._end = lambda: None  # type: ignore[method-assign]
        store.delete_streams(["a", "b"])
        with opened(copy_of_now(tmp_path / "a", tmp_path / "b")) as killed:
            assert_full(killed)


def test_a_commit_deletes_before_it_writes(store: Store) -> None:
    """A stream that replaces another has none of its component states."""
    store.write(FULL)
    store.write(
        Commit(
            schema="f", streams=[("a", b"new")], component_states=[("other", "a", b"new")], deleted_streams=["a", "b"]
        )
    )
    assert [(row.name, row.row) for row in store.rows()] == [("a", b"new")]
    assert store.states_of_stream("a") == {"other": b"new"}
    assert store.states_of_component("gate") == {"": b""}


def test_texts_are_stored(store: Store) -> None:
    """Beside numbers; a value that is not text is none."""
    store.write(Commit(numbers={"n": 7}, texts={"model_id": "m1"}))
    assert (store.value("model_id", ""), store.value("n", "?"), store.value("x", "none")) == ("m1", "?", "none")


def test_other_users_cannot_read_it(tmp_path: Path) -> None:
    """The directory is 0700, every file in it 0600, at any umask."""
    with opened(tmp_path / "deep" / "state") as store:
        store.write(FULL)
        folder = store.path.parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.iterdir()} == {
            "lock": "0o600", "state.db": "0o600", "state.db-wal": "0o600",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("UPDATE stream SET row=? WHERE name='a'", (b"row of A",)),
        ("UPDATE stream SET crc=crc+1 WHERE name='a'", ()),
        ("UPDATE stream SET row=7 WHERE name='a'", ()),
        ("UPDATE stream SET crc='x' WHERE name='a'", ()),
        ("UPDATE stream SET schema=9 WHERE name='a'", ()),
        ("UPDATE stream SET row=(SELECT row FROM stream WHERE name='b') WHERE name='a'", ()),
    ],
)
def test_a_damaged_row_is_detected(tmp_path: Path, text: str, values: tuple[object, ...]) -> None:
    """Other bytes, another checksum, type or schema, the row of another stream: no row; the others are whole."""
    with opened(tmp_path) as store:
        store.write(FULL)
    change_store(tmp_path, text, *values)
    with opened(tmp_path) as store:
        assert {row.name: row.row for row in store.rows()} == {"a": None, "b": b"row of b"}


def test_a_row_missing_from_the_index_is_left_out(tmp_path: Path) -> None:
    """Where the name is damaged, the index still has the old one: the row belongs to no stream and is ignored."""
    with opened(tmp_path) as store:
        store.write(FULL)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name='stream'").fetchone()[0]
    data = bytearray((tmp_path / FILE_NAME).read_bytes())
    place = data.rindex(b"row of a", (page - 1) * 4096, page * 4096)
    at = data.rindex(b"a", (page - 1) * 4096, place)
    data[at : at + 1] = b"\xff"
    (tmp_path / FILE_NAME).write_bytes(data)
    with opened(tmp_path) as store:
        assert [row.name for row in store.rows()] == ["b"]


@pytest.mark.parametrize("text", ["data=x'00'", "crc=crc+1", "data=7", "data=CAST(data AS TEXT)", "component='other'"])
def test_a_damaged_component_state_is_detected(tmp_path: Path, text: str) -> None:
    """Read by stream and by component."""
    with opened(tmp_path) as store:
        store.write(FULL)
    change_store(tmp_path, f"UPDATE component_state SET {text} WHERE component='clock:s'")  # noqa: S608
    with opened(tmp_path) as store:
        part = "other" if "other" in text else "clock:s"
        assert store.states_of_stream("a") == {part: None}
        assert store.states_of_component(part) == {"a": None}
        assert store.states_of_component("gate") == {"": b""}


def test_a_failed_commit_leaves_the_previous_one(tmp_path: Path) -> None:
    """When the disk fills during it, the error is raised, nothing is written, and no later commit is."""
    with opened(tmp_path) as store:
        store.write(FULL)
        store.mark_clean_shutdown()
    before = store_content(tmp_path)
    big = Commit(schema="f", streams=[(f"s{number}", os.urandom(5000)) for number in range(50)], numbers={"n": 1})
    with opened(tmp_path) as store:
        connection = store._connection
        assert connection is not None
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + 3}")
        with pytest.raises(StoreError, match="full; nothing is acknowledged"):
            store.write(big)
        for use in (lambda: store.write(FULL), lambda: list(store.rows()), store.mark_clean_shutdown):
            with pytest.raises(StoreError, match="not open"):
                use()
    after = store_content(tmp_path)
    assert after == before


def test_any_error_of_sqlite_is_a_store_error(store: Store) -> None:
    """Also when the connection cannot be closed."""

    class Broken(sqlite3.Connection):
        def execute(self, *_: object) -> sqlite3.Cursor:
            raise sqlite3.OperationalError("disk I/O error")

        def close(self) -> None:
            raise sqlite3.OperationalError("again")

    connection = store._connection
    assert connection is not None
    connection.close()
    store._connection = sqlite3.connect(":memory:", factory=Broken)
    broken = store._connection
    with pytest.raises(StoreError, match=r"state\.db: SQLite failed: disk I/O error; nothing is acknowledged"):
        store.write(FULL)
    sqlite3.Connection.close(broken)
    with pytest.raises(StoreError, match="not open"):
        store.positions()


def test_a_closed_store_can_be_opened_again(store: Store) -> None:
    """Closing twice does nothing."""
    store.write(FULL)
    assert store.is_open
    store.close()
    store.close()
    assert not store.is_open
    store.open()
    assert_full(store)
