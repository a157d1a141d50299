from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.errors import IncompatibleStateError, StateError
from stream_gru.state import Column, StateTable

COLUMNS = (
    Column("h", (3,), np.float32),
    Column("clock", (), np.int64, -(2**62)),
    Column("scale", (2, 2), np.float64, 1.0),
    Column("flag", (), np.bool_),
    Column("none", (0,), np.float32),
    Column("missing", (2,), np.float32, np.nan),
)


def fill(table: StateTable, stream: str, seed: int) -> dict[str, bytes]:
    """Give a stream contents that no other has; return them."""
    rng = np.random.default_rng(seed)
    slot = table.slot(stream)
    for column in COLUMNS:
        table[column.name][slot] = rng.integers(0, 100, column.shape).astype(column.dtype)
    return table.export_row(stream)


@given(st.lists(st.tuples(st.sampled_from("abcdefghij"), st.booleans()), max_size=60), st.integers(1, 4))
def test_the_table_is_a_dictionary_of_rows(actions: list[tuple[str, bool]], capacity: int) -> None:
    """Whatever streams come, go and grow the table, each keeps its own contents and nobody else's."""
    table, expected = StateTable(COLUMNS, capacity), dict[str, dict[str, bytes]]()
    for step, (stream, evict) in enumerate(actions):
        if evict and stream in expected:
            table.evict(stream)
            del expected[stream]
        else:
            table.slots_for([stream], 100)
            expected[stream] = fill(table, stream, step)
        assert {name: table.export_row(name) for name in table.streams} == expected
        assert len(table) == len(expected)
        assert all(name in table for name in expected)
        assert len({table.slot(name) for name in expected}) == len(expected)


def test_a_fresh_slot_is_initial_also_after_another_stream_had_it() -> None:
    """Nothing of an evicted stream is left for the next one."""
    table = StateTable(COLUMNS, 1)
    table.slots_for(["old"], 1)
    fresh = table.export_row("old")
    assert fill(table, "old", 1) != fresh
    table.evict("old")
    table.slots_for(["new"], 1)
    assert table.export_row("new") == fresh


def test_growth_keeps_rows_and_begins_new_ones_afresh() -> None:
    """A table of one slot takes a hundred streams; the first one's contents stand."""
    table = StateTable(COLUMNS, 1)
    table.slots_for(["first"], 1000)
    kept = fill(table, "first", 5)
    slots = table.slots_for([f"s{i}" for i in range(100)], 1000)
    assert sorted(slots.tolist()) == sorted(set(range(101)) - {table.slot("first")})
    assert table.export_row("first") == kept
    assert np.isnan(table["missing"][slots]).all()
    assert table.streams[0] == "first"


def test_over_the_limit_there_is_no_slot() -> None:
    """Known streams keep theirs, one more gets -1, and a place is free again after an eviction."""
    table = StateTable(COLUMNS, 2)
    assert (table.slots_for(["a", "b", "c", "a"], 2) >= 0).tolist() == [True, True, False, True]
    assert "c" not in table
    table.evict("a")
    assert table.slots_for(["c"], 2)[0] >= 0


def test_rows_travel_between_tables_of_any_size() -> None:
    """A row that was exported is imported bit for bit, also over an older one and into a full table."""
    one, other = StateTable(COLUMNS, 4), StateTable(COLUMNS, 1)
    one.slots_for(["a", "b"], 10)
    rows = {name: fill(one, name, i) for i, name in enumerate("ab")}
    other.slots_for(["a"], 10)
    fill(other, "a", 9)
    for name, row in rows.items():
        other.import_row(name, row)
    assert {name: other.export_row(name) for name in other.streams} == rows
    assert sum(len(data) for data in rows["a"].values()) == other.nbytes()


def test_rows_of_another_model_are_refused() -> None:
    """Another set of columns, or a column of another size, leaves the table as it was and says what was expected."""
    table = StateTable(COLUMNS)
    table.slots_for(["a"], 10)
    row = fill(table, "a", 1)
    with pytest.raises(IncompatibleStateError, match=r"a: expected the columns .*'h'"):
        table.import_row("a", {**row, "more": b""})
    with pytest.raises(IncompatibleStateError):
        table.import_row("b", {name: data for name, data in row.items() if name != "h"})
    with pytest.raises(StateError, match=r"b: h: expected \(3,\) of float32, got 11 bytes"):
        table.import_row("b", {**row, "h": row["h"][:-1]})
    assert table.streams == ("a",)
    assert table.export_row("a") == row


@pytest.mark.parametrize("action", ["slot", "evict", "export_row"])
def test_unknown_streams_are_key_errors(action: str) -> None:
    """Nobody asks for a stream that is not there by accident."""
    with pytest.raises(KeyError):
        getattr(StateTable(COLUMNS), action)("nobody")
