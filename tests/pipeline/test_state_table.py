from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stream_gru.core.errors import IncompatibleStateError, StateError
from stream_gru.pipeline.state_table import Column, StateTable, split_row

COLUMNS = (
    Column("h", (3,), np.float32),
    Column("clock", (), np.int64, -(2**62)),
    Column("scale", (2, 2), np.float64, 1.0),
    Column("flag", (), np.bool_),
    Column("none", (0,), np.float32),
    Column("missing", (2,), np.float32, np.nan),
)


def fill(table: StateTable, stream: str, seed: int) -> bytes:
    """Give a stream unique contents; return them."""
    rng = np.random.default_rng(seed)
    slot = table.slot(stream)
    for column in COLUMNS:
        table[column.name][slot] = rng.integers(0, 100, column.shape).astype(column.dtype)
    return table.row(stream)


def columns_of(table: StateTable, stream: str) -> dict[str, NDArray[Any]]:
    """A stream as its columns."""
    return split_row(table.row_layout, table.row(stream))


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.booleans()), max_size=60), st.integers(1, 4))
def test_the_table_is_a_dictionary_of_rows(actions: list[tuple[str, bool]], capacity: int) -> None:
    """Whichever streams are added and evicted, each keeps its own contents only."""
    table, expected = StateTable(COLUMNS, capacity), dict[str, bytes]()
    for step, (stream, evict) in enumerate(actions):
        if evict and stream in expected:
            table.evict(stream)
            del expected[stream]
        else:
            table.slots_for([stream], 100)
            expected[stream] = fill(table, stream, step)
        assert {name: table.row(name) for name in table.streams} == expected
        assert len(table) == len(expected)
        assert all(name in table for name in expected)
        assert len({table.slot(name) for name in expected}) == len(expected)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["batch", "mark_dirty", "evict", "mark_clean"])))
)
def test_dirty_rows_are_those_changed_since_mark_clean(actions: list[tuple[str, str]]) -> None:
    """Those that were in a batch or marked dirty and are still there, with their current contents, and no others."""
    table, expected = StateTable(COLUMNS, 1), set[str]()
    for step, (stream, action) in enumerate(actions):
        if action == "batch":
            table.slots_for([stream], 100)
            fill(table, stream, step)
            expected.add(stream)
        elif action == "mark_clean":
            table.mark_clean()
            expected.clear()
        elif stream in table and action == "mark_dirty":
            table.mark_dirty(stream)
            expected.add(stream)
        elif stream in table:
            table.evict(stream)
            expected.discard(stream)
        changed = table.dirty_rows()
        assert dict(changed) == {name: table.row(name) for name in expected}
        assert len(changed) == len(expected)


def test_all_streams_can_be_marked_dirty() -> None:
    """As a reset of all streams does; an empty table has no dirty rows."""
    table = StateTable(COLUMNS)
    table.mark_dirty()
    assert not table.dirty_rows()
    table.slots_for(["a", "b"], 10)
    table.mark_clean()
    table.mark_dirty()
    assert [name for name, _ in table.dirty_rows()] == ["a", "b"]


def test_a_restored_stream_is_clean() -> None:
    """Its row is already stored."""
    table = StateTable(COLUMNS)
    table.restore("a", {"flag": np.array(True)})
    assert not table.dirty_rows()


def test_a_stream_over_the_limit_is_not_dirty() -> None:
    """The slot -1 is not the last row."""
    table = StateTable(COLUMNS, 2)
    table.slots_for(["a"], 1)
    table.mark_clean()
    assert table.slots_for(["b"], 1)[0] == -1
    assert not table.dirty_rows()


def test_a_reused_slot_has_initial_values() -> None:
    """Nothing of the evicted stream is left."""
    table = StateTable(COLUMNS, 1)
    table.slots_for(["old"], 1)
    fresh = table.row("old")
    assert fill(table, "old", 1) != fresh
    table.evict("old")
    table.slots_for(["new"], 1)
    assert table.row("new") == fresh


def test_growth_keeps_rows_and_initialises_new_ones() -> None:
    """A table of one slot grows to a hundred streams; the contents of the first are kept."""
    table = StateTable(COLUMNS, 1)
    table.slots_for(["first"], 1000)
    kept = fill(table, "first", 5)
    slots = table.slots_for([f"s{i}" for i in range(100)], 1000)
    assert sorted(slots.tolist()) == sorted(set(range(101)) - {table.slot("first")})
    assert table.row("first") == kept
    assert np.isnan(table["missing"][slots]).all()
    assert table.streams[0] == "first"


def test_over_the_limit_there_is_no_slot() -> None:
    """Known streams keep theirs, one more gets -1, and an eviction frees a slot."""
    table = StateTable(COLUMNS, 2)
    assert (table.slots_for(["a", "b", "c", "a"], 2) >= 0).tolist() == [True, True, False, True]
    assert "c" not in table
    table.evict("a")
    assert table.slots_for(["c"], 2)[0] >= 0


def test_rows_can_be_moved_between_tables() -> None:
    """A row is restored bit for bit, also over an older one and into a full table."""
    one, other = StateTable(COLUMNS, 4), StateTable(COLUMNS, 1)
    one.slots_for(["a", "b"], 10)
    rows = {name: fill(one, name, i) for i, name in enumerate("ab")}
    other.slots_for(["a"], 10)
    fill(other, "a", 9)
    for name in rows:
        other.restore(name, columns_of(one, name))
    assert {name: other.row(name) for name in other.streams} == rows
    assert len(rows["a"]) == other.nbytes()


def test_columns_that_are_not_restored_get_initial_values() -> None:
    """A stream of another model keeps its event time, and nothing of the row that it replaces."""
    table, fresh = StateTable(COLUMNS), StateTable(COLUMNS)
    table.slots_for(["a"], 10)
    fresh.slots_for(["a"], 10)
    fill(table, "a", 1)
    table.restore("a", {"clock": np.array(7, np.int64)})
    fresh["clock"][fresh.slot("a")] = 7
    assert table.row("a") == fresh.row("a")


@pytest.mark.parametrize(
    ("column", "array", "words"),
    [
        ("more", np.zeros(1), r"a: more: expected no such column, got \(1,\) of float64"),
        ("h", np.zeros(4, np.float32), r"a: h: expected \(3,\) of float32, got \(4,\) of float32"),
        ("h", np.zeros(3), r"a: h: expected \(3,\) of float32, got \(3,\) of float64"),
    ],
)
def test_columns_of_another_layout_are_rejected(column: str, array: NDArray[Any], words: str) -> None:
    """The message has the expected layout, and the table is unchanged."""
    table = StateTable(COLUMNS)
    table.slots_for(["a"], 10)
    row = fill(table, "a", 1)
    with pytest.raises(IncompatibleStateError, match=words):
        table.restore("a", {"clock": np.array(7, np.int64), column: array})
    assert table.streams == ("a",)
    assert table.row("a") == row


@given(st.binary(max_size=100))
def test_a_row_of_another_length_is_rejected(data: bytes) -> None:
    """Bytes are split into columns only if their number fits the layout."""
    table = StateTable(COLUMNS)
    if len(data) == table.nbytes():
        assert b"".join(array.tobytes() for array in split_row(table.row_layout, data).values()) == data
    else:
        with pytest.raises(StateError, match=f"bytes, got {len(data)}"):
            split_row(table.row_layout, data)


@pytest.mark.parametrize(
    ("column", "data"),
    [
        (("a", "|O", ()), bytes(8)),
        (("", "<f4", ()), bytes(4)),
        (("a", "<f4", (2**70,)), b""),
        (("a", "<f4", (-1,)), b""),
        (("a", "<f4", (1,) * 70), bytes(4)),
        (("a", "rubbish", ()), b""),
        (("a", "S", ()), b""),
    ],
)
def test_an_invalid_layout_is_a_state_error(column: tuple[str, str, tuple[int, ...]], data: bytes) -> None:
    """An imported state can have any layout."""
    with pytest.raises(StateError, match="the layout of a stored row cannot be read"):
        split_row((column,), data)


def test_two_columns_of_the_same_name_are_rejected() -> None:
    """The layout would be ambiguous."""
    with pytest.raises(StateError, match="cannot be read"):
        split_row((("a", "<f4", ()), ("a", "<f4", ())), bytes(8))


def test_a_row_has_the_same_bytes_on_every_machine() -> None:
    """Columns are in their order, little-endian on every machine, without gaps."""
    table = StateTable([Column("a", (2,), np.dtype(">f4")), Column("b", (), np.int64)])
    table.restore("s", {"a": np.array([1, 2], ">f4"), "b": np.array(3, np.int64)})
    assert table.row_layout == (("a", "<f4", (2,)), ("b", "<i8", ()))
    assert table.row("s") == np.array([1, 2], "<f4").tobytes() + np.array(3, "<i8").tobytes()
    assert columns_of(table, "s")["a"].tolist() == [1, 2]


def test_slots_are_assigned_from_the_lowest() -> None:
    """So the same streams in the same order have the same slots."""
    table = StateTable(COLUMNS, 1)
    slots = [int(table.slots_for([name], 10)[0]) for name in "abcdefgh"]
    assert all(a < b for a, b in pairwise(slots))


@pytest.mark.parametrize("action", ["slot", "evict", "row", "mark_dirty"])
def test_unknown_streams_are_key_errors(action: str) -> None:
    """A method for one stream never ignores an unknown name."""
    with pytest.raises(KeyError):
        getattr(StateTable(COLUMNS), action)("unknown")
