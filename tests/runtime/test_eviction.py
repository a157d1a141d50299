"""Streams that make room for each other: whoever comes back goes on as if it had never been away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_gru.core.types import DropReason, Rejected, ResetReason
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.eviction import LruKeys, StatePolicy
from tests.runtime.test_checkpointer import Note, notes, read_of
from tests.support.batches import batch, rows_of
from tests.support.stores import change, feed, keeper_of, model, table_rows


def crowd(folder: Path, *names: str, most: int = 2, max_stored: int = 100) -> Checkpointer:
    """A keeper with room for a few, in which these came one after the other, with a commit behind each."""
    keeper = keeper_of(folder, max_streams=most, evict=True, max_stored_streams=max_stored)
    for name in names:
        feed(keeper, name, 1, 2)
        keeper.commit({}, {})
    return keeper


def test_the_stream_that_was_idle_for_longest_makes_room(tmp_path: Path) -> None:
    """Only behind a commit; a sample makes a stream the last to go."""
    keeper = crowd(tmp_path, "a", "b")
    feed(keeper, "a", 3)
    feed(keeper, "c", 1)
    assert keeper._pipeline.streams == ("a", "b", "c")
    keeper.commit({}, {})
    assert set(keeper._pipeline.streams) == {"a", "c"}
    assert (keeper.counts.evicted, keeper.counts.restored) == (1, 0)


def test_without_a_store_nobody_is_evicted() -> None:
    """There would be nowhere to keep them."""
    keeper = Checkpointer(model(), policy=StatePolicy(max_streams=1, evict=True))
    assert not keeper.cache.evicts
    for name in "abc":
        feed(keeper, name, 1)
        keeper.commit({}, {})
    assert keeper._pipeline.streams == ("a", "b", "c")
    assert not keeper.cache.has_stream("d")
    assert (keeper.cache.reset("d"), keeper.cache.reset(None)) == (0, 3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 4), st.booleans()), max_size=25), st.integers(1, 3))
def test_eviction_changes_no_bit(
    tmp_path_factory: pytest.TempPathFactory, arrivals: list[tuple[str, int, bool]], most: int
) -> None:
    """However little room there is, outputs and states are those of a pipeline that keeps everybody in memory."""
    keeper = keeper_of(tmp_path_factory.mktemp("state"), max_streams=most, evict=True)
    alone, time = model(), dict.fromkeys("abcde", 0)
    for name, count, commit in arrivals:
        one = batch([name] * count, [time[name] + second for second in range(1, count + 1)])
        time[name] += count
        out = keeper._pipeline.process(keeper.cache.load_streams(one))
        assert rows_of([out]) == rows_of([alone.process(one)])
        if commit:
            keeper.commit({}, {})
            assert len(keeper._pipeline.streams) <= most
    keeper.commit({}, {})
    assert keeper.store is not None
    assert {row.name: row.row for row in keeper.store.rows()} == table_rows(alone)
    keeper.close()


def test_what_other_parts_remember_goes_and_comes_with_the_stream(tmp_path: Path) -> None:
    """A part lets go of an evicted stream, and has it back before its sample is taken in."""
    part = notes()
    keeper = crowd(tmp_path, "a")
    keeper.set_components({"p": part}, {})
    part.put("a", Note("of a"))
    for name in "bc":
        feed(keeper, name, 1)
        keeper.commit({}, {})
    assert read_of(part) == {}
    keeper.cache.load_streams(batch(["a"], [3]))
    assert read_of(part) == {"a": "of a"}
    assert keeper.counts.restored == 1


def test_a_start_brings_back_those_that_were_heard_last(tmp_path: Path) -> None:
    """Only as many as there is room for, with their memories; the others come when they are heard."""
    keeper = crowd(tmp_path, "a", "b", "c", "d", most=4)
    keeper.set_components({"p": notes(a="of a", d="of d")}, {})
    keeper.commit({}, {})
    states = table_rows(keeper._pipeline)
    keeper.close()
    pipeline, part = model(), notes()
    keeper = keeper_of(tmp_path, pipeline, parts={"p": part}, max_streams=2, evict=True)
    assert table_rows(pipeline) == {name: states[name] for name in "cd"}
    assert read_of(part) == {"d": "of d"}
    keeper.cache.load_streams(batch(["a"], [3]))
    assert table_rows(pipeline)["a"] == states["a"]
    assert read_of(part) == {"a": "of a", "d": "of d"}


def test_a_name_of_which_only_a_part_knows_comes_back_too(tmp_path: Path) -> None:
    """A record that waits for its other channels is no stream yet."""
    keeper = crowd(tmp_path)
    keeper.set_components({"p": notes(a="waits")}, {})
    keeper.commit({}, {})
    keeper.close()
    part = notes()
    keeper = keeper_of(tmp_path, parts={"p": part}, max_streams=2, evict=True)
    assert read_of(part) == {}
    for name in "abc":
        keeper.cache.load_streams(batch([name], [1]))
        keeper.commit({}, {})
    assert read_of(part) == {}
    keeper.cache.load_streams(batch(["a"], [1]))
    assert read_of(part) == {"a": "waits"}


def test_what_a_part_remembered_that_is_no_more_comes_back_to_nobody(tmp_path: Path) -> None:
    """Before the first commit it is still stored."""
    keeper = crowd(tmp_path, "a")
    keeper.set_components({"p": notes(a="x"), "q": notes(a="y")}, {})
    keeper.commit({}, {})
    keeper.close()
    part = notes()
    keeper = keeper_of(tmp_path, parts={"q": part}, max_streams=2, evict=True)
    assert read_of(part) == {"a": "y"}


# ---- how many are kept in all


def test_beyond_the_most_that_are_kept_new_streams_are_refused(tmp_path: Path) -> None:
    """Their samples are dropped for this reason, also after a restart; those that are known are taken."""
    keeper = crowd(tmp_path, "a", "b", "c", most=1, max_stored=3)
    for restart in (False, True):
        if restart:
            keeper.close()
            keeper = keeper_of(tmp_path, max_streams=1, evict=True, max_stored_streams=3)
        both = replace(batch(["a", "x", "x", "b"], [7, 1, 2, 7]), rejected=(Rejected(DropReason.STREAM_LIMIT),))
        admitted = keeper.cache.load_streams(both)
        assert admitted.rejected_counts == {DropReason.STREAM_LIMIT: 3}
        assert [admitted.stream_names[code] for code in admitted.stream_index] == ["a", "b"]
        assert admitted.received == both.received
        out = keeper._pipeline.process(admitted)
        assert "x" not in keeper._pipeline.streams
        assert len(out) + sum(out.dropped.values()) == both.received


def test_names_of_which_nothing_was_kept_take_no_place(tmp_path: Path) -> None:
    """A name all of whose samples were left out (it is paused) counts only while it is in memory."""
    keeper = crowd(tmp_path, "a", most=1, max_stored=3)
    for turn in range(5):
        for name in ("paused", "a"):
            keeper.cache.load_streams(batch([name], [5 + turn]))  # and nothing of it reaches the pipeline
            keeper.commit({}, {})
    feed(keeper, "b", 1)
    keeper.commit({}, {})
    feed(keeper, "c", 1)
    assert "c" in keeper._pipeline.streams


def test_refusing_many_streams_compares_each_name_a_few_times(tmp_path: Path) -> None:
    """And not with all others: a message may bring thousands of them."""
    compared = list[int]()

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(1)
            return str.__eq__(self, other)

    keeper = crowd(tmp_path, "a", max_stored=1)
    count = 2000
    names = [f"s{number}" for number in range(count)]
    many = replace(batch(names, [1.0] * count), stream_names=tuple(map(Name, names)))
    assert keeper.cache.load_streams(many).rejected_counts == {DropReason.STREAM_LIMIT: count}
    assert len(compared) < 10 * count


# ---- resets


def test_an_evicted_stream_is_reset(tmp_path: Path) -> None:
    """It is known though it is not in memory; its next sample shows the reset, also after a restart."""
    keeper = crowd(tmp_path, "a", "b", "c", "d")
    assert (keeper.cache.has_stream("a"), keeper.cache.has_stream("d"), keeper.cache.has_stream("x")) == (
        True,
        True,
        False,
    )
    assert (keeper.cache.reset("a"), keeper.cache.reset("x")) == (1, 0)
    keeper.commit({}, {})
    keeper.close()
    keeper = crowd(tmp_path)
    out = keeper._pipeline.process(keeper.cache.load_streams(batch(["a", "b"], [3, 3])))
    assert out.resets == {ResetReason.COMMAND: 1}
    assert out.reset[0] == ResetReason.COMMAND


@pytest.mark.parametrize("restart", [False, True])
def test_all_streams_are_reset_though_most_are_evicted(tmp_path: Path, restart: bool) -> None:
    """Each once, whenever it comes back; those that are new since then are not."""
    keeper = crowd(tmp_path, "a", "b", "c", "d")
    assert keeper.cache.reset(None) == 4
    for name in "ae":
        feed(keeper, name, 3, 4)
        keeper.commit({}, {})
    if restart:
        keeper.close()
        keeper = crowd(tmp_path)
    resets: dict[tuple[str, int], list[str]] = {}
    for name in "abcdeabcde":
        out = keeper._pipeline.process(keeper.cache.load_streams(batch([name], [9 + len(resets)])))
        resets[name, len(resets)] = [ResetReason(int(reason)).text for reason in out.reset]
        keeper.commit({}, {})
    reset = [name for (name, _), reasons in resets.items() if reasons == ["command"]]
    assert reset == ["b", "c", "d"]


def test_a_reset_of_all_is_written_though_nobody_is_in_memory(tmp_path: Path) -> None:
    """The commit behind it holds nothing else."""
    keeper = crowd(tmp_path, "a", "b")
    keeper.cache._evict(["a", "b"])
    keeper.cache.reset(None)
    keeper.commit({}, {})
    keeper.close()
    keeper = keeper_of(tmp_path)
    out = keeper._pipeline.process(batch(["a", "b"], [3, 3]))
    assert out.resets == {ResetReason.COMMAND: 2}


def test_a_damaged_stream_that_was_evicted_begins_anew_when_it_comes_back(tmp_path: Path) -> None:
    """For that reason; the loop goes on."""
    keeper = crowd(tmp_path, "a", "b", "c")
    keeper.close()
    change(tmp_path, "UPDATE stream SET row=x'' WHERE name='a'")
    keeper = crowd(tmp_path)
    out = keeper._pipeline.process(keeper.cache.load_streams(batch(["a"], [3])))
    assert out.resets == {ResetReason.STATE_DAMAGED: 1}
    assert keeper.counts.damaged == 1


# ---- another policy while it runs


def test_less_room_takes_effect_with_the_next_commit(tmp_path: Path) -> None:
    """More room does, too."""
    keeper = crowd(tmp_path, "a", "b", "c", most=3)
    keeper.cache.set_policy(StatePolicy(max_streams=1, evict=True))
    keeper.commit({}, {})
    assert keeper._pipeline.streams == ("c",)


def test_streams_that_came_while_nobody_was_evicted_may_be_evicted(tmp_path: Path) -> None:
    """And they count as kept."""
    keeper = keeper_of(tmp_path)
    for name in "abc":
        feed(keeper, name, 1)
    keeper.commit({}, {})
    keeper.cache.set_policy(StatePolicy(max_streams=2, evict=True, max_stored_streams=3))
    keeper.commit({}, {})
    assert len(keeper._pipeline.streams) == 2
    assert keeper.cache.load_streams(batch(["x"], [1])).rejected_counts == {DropReason.STREAM_LIMIT: 1}


def test_evicted_streams_come_back_where_nobody_is_evicted_any_more(tmp_path: Path) -> None:
    """With what parts remember of them; else their next sample would begin them anew."""
    keeper, part = crowd(tmp_path, "a", "b", "c"), notes(a="of a", x="of x")
    keeper.set_components({"p": part}, {})
    keeper.commit({}, {})
    part.evict("a")
    part.evict("x")
    keeper.cache.set_policy(StatePolicy(max_streams=2))
    assert set(keeper._pipeline.streams) == {"a", "b", "c"}
    assert read_of(part) == {"a": "of a"}
    assert part.get("x") == Note("of x")
    assert keeper._pipeline.process(keeper.cache.load_streams(batch(["a"], [3]))).resets == {}


# ---- residents


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=4), max_size=20), st.integers(0, 4))
def test_residents_are_the_last_that_were_heard(turns: list[list[str]], most: int) -> None:
    """Of all names in the order in which they were heard last, the end; the rest is idle, oldest first."""
    residents, order = LruKeys(most), list[str]()
    for names in turns:
        residents.use(names)
        for name in names:
            order = [one for one in order if one != name] + [name]
        split = max(0, len(order) - most)
        assert residents.pop_surplus() == order[:split]
        order = order[split:]
        assert len(residents) == len(order)
        assert all(name in residents for name in order)
    assert residents.pop_surplus() == []
