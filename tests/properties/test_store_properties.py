"""Commits that are only in the log read as those in the tables, at once, after a kill and after a clean end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_gru.core.commit_records import FileOffset, OutboxRow, ProcessedPackets
from stream_gru.core.types import Position
from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.store import Store
from tests.support.stores import copy_of_now, opened

_NAMES = st.sampled_from("abc")
_BYTES = st.binary(max_size=6) | st.integers(0, 255).map(lambda value: bytes([value]) * 40)
_NUMBERS = st.integers(1, 6)


def _by_name(values: st.SearchStrategy[object]) -> st.SearchStrategy[Mapping[str, object]]:
    return st.dictionaries(_NAMES, values, max_size=2)


_OUTPUTS = st.dictionaries(_NUMBERS, _BYTES, max_size=3).map(
    lambda found: [OutboxRow("topic", payload, f"k{number}", number) for number, payload in sorted(found.items())]
)
_COMMITS = st.builds(
    Commit,
    deleted_streams=st.lists(_NAMES, max_size=1),
    schema=st.sampled_from(["one", "two"]),
    streams=_by_name(_BYTES).map(lambda found: list(found.items())),
    discarded_components=st.lists(st.sampled_from("pq"), max_size=1),
    component_states=st.dictionaries(
        st.tuples(st.sampled_from("pq"), _NAMES), st.none() | st.binary(max_size=4), max_size=3
    ).map(lambda found: [(*at, data) for at, data in found.items()]),
    positions=_by_name(st.builds(Position, st.sampled_from(["f", "\udce4"]), _NUMBERS)),
    processed_packets=_by_name(
        st.builds(ProcessedPackets, st.dictionaries(_NUMBERS, st.binary(max_size=3)), st.booleans(), st.just(4))
    ),
    file_offsets=_by_name(st.builds(FileOffset, st.just("f"), _NUMBERS)),
    unacked=_by_name(_OUTPUTS),
    acked=_by_name(st.lists(_NUMBERS, unique=True, max_size=2)),
    numbers=_by_name(_NUMBERS),
    texts=st.dictionaries(st.sampled_from("xy"), st.text(max_size=3), max_size=1),
)


def _with_new_numbers(commit: Commit, turn: int) -> Commit:
    """A sink uses each number once."""
    unacked = {
        sink: [replace(row, number=10 * turn + row.number) for row in rows] for sink, rows in commit.unacked.items()
    }
    acked = {sink: [10 * (turn - 1) + number for number in found] for sink, found in commit.acked.items()}
    return replace(commit, unacked=unacked, acked=acked)


def everything(store: Store) -> list[object]:
    """Return all that a store has."""
    return [
        store.commit_no,
        [store.row(name) for name in "abc"],
        [store.states_of_stream(name) for name in "abc"],
        sorted(store.rows(), key=lambda row: row.name),
        [row.commit_no for row in store.rows()],
        [store.states_of_component(name) for name in "pq"],
        store.positions(),
        [list(store.packets(name).items()) for name in "abc"],
        [store.sink_checkpoint(name) for name in "abc"],
        store.outputs_waiting(),
        [store.value(name, -1) for name in "abc"],
        [store.value(name, "") for name in "xy"],
        store.count_known(),
    ]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_COMMITS, st.booleans()), max_size=8))
def test_the_log_reads_as_the_tables(
    tmp_path_factory: pytest.TempPathFactory, commits: list[tuple[Commit, bool]]
) -> None:
    """Whatever the commits, and whenever some of them are written to the tables."""
    folder: Path = tmp_path_factory.mktemp("stores")
    with opened(folder / "tables") as tables, opened(folder / "log") as logged:
        for turn, (one, read) in enumerate(commits):
            commit = _with_new_numbers(one, turn)
            tables.write(commit)
            tables.count()  # writes the log to the tables
            logged.write(commit)
            if read:
                logged.row("a")  # does so for one stream if it has to
        killed = copy_of_now(folder / "log", folder / "killed")
        expected = everything(tables)
        assert everything(logged) == expected
    for place in (killed, folder / "log"):
        with opened(place) as again:
            assert again.moved_aside is None
            assert everything(again) == expected
