"""Eviction: a stream that is loaded again continues as if it had never been evicted."""

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
from tests.support.stores import change_store, checkpointer_of, feed, model, table_rows


def small_cache(folder: Path, *names: str, most: int = 2, max_stored: int = 100) -> Checkpointer:
    """Return a checkpointer with room for few streams, into which these came one by one, each with a commit."""
    checkpointer = checkpointer_of(folder, max_streams=most, evict=True, max_stored_streams=max_stored)
    for name in names:
        feed(checkpointer, name, 1, 2)
        checkpointer.commit({}, {})
    return checkpointer


def test_the_least_recently_used_stream_is_evicted(tmp_path: Path) -> None:
    """Only after a commit; each sample makes its stream the most recently used one."""
    checkpointer = small_cache(tmp_path, "a", "b")
    feed(checkpointer, "a", 3)
    feed(checkpointer, "c", 1)
    assert checkpointer._pipeline.streams == ("a", "b", "c")
    checkpointer.commit({}, {})
    assert set(checkpointer._pipeline.streams) == {"a", "c"}
    assert (checkpointer.counts.evicted, checkpointer.counts.restored) == (1, 0)


def test_without_a_store_no_stream_is_evicted() -> None:
    """There is no place to store it."""
    checkpointer = Checkpointer(model(), policy=StatePolicy(max_streams=1, evict=True))
    assert not checkpointer.cache.evicts
    for name in "abc":
        feed(checkpointer, name, 1)
        checkpointer.commit({}, {})
    assert checkpointer._pipeline.streams == ("a", "b", "c")
    assert not checkpointer.cache.has_stream("d")
    assert (checkpointer.cache.reset("d"), checkpointer.cache.reset(None)) == (0, 3)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 4), st.booleans()), max_size=25), st.integers(1, 3))
def test_eviction_changes_no_bit(
    tmp_path_factory: pytest.TempPathFactory, arrivals: list[tuple[str, int, bool]], most: int
) -> None:
    """At any capacity, outputs and states equal those of a pipeline that keeps all streams in memory."""
    checkpointer = checkpointer_of(tmp_path_factory.mktemp("state"), max_streams=most, evict=True)
    alone, time = model(), dict.fromkeys("abcde", 0)
    for name, count, commit in arrivals:
        one = batch([name] * count, [time[name] + second for second in range(1, count + 1)])
        time[name] += count
        out = checkpointer._pipeline.process(checkpointer.cache.load_streams(one))
        assert rows_of([out]) == rows_of([alone.process(one)])
        if commit:
            checkpointer.commit({}, {})
            assert len(checkpointer._pipeline.streams) <= most
    checkpointer.commit({}, {})
    assert checkpointer.store is not None
    assert {row.name: row.row for row in checkpointer.store.rows()} == table_rows(alone)
    checkpointer.close()


def test_component_states_are_evicted_and_loaded_with_the_stream(tmp_path: Path) -> None:
    """A component has the state again before the next sample is processed."""
    part = notes()
    checkpointer = small_cache(tmp_path, "a")
    checkpointer.set_components({"p": part}, {})
    part.put("a", Note("of a"))
    for name in "bc":
        feed(checkpointer, name, 1)
        checkpointer.commit({}, {})
    assert read_of(part) == {}
    checkpointer.cache.load_streams(batch(["a"], [3]))
    assert read_of(part) == {"a": "of a"}
    assert checkpointer.counts.restored == 1


def test_a_start_loads_the_most_recently_used_streams(tmp_path: Path) -> None:
    """Only as many as fit, with their component states; the others are loaded with their next sample."""
    checkpointer = small_cache(tmp_path, "a", "b", "c", "d", most=4)
    checkpointer.set_components({"p": notes(a="of a", d="of d")}, {})
    checkpointer.commit({}, {})
    states = table_rows(checkpointer._pipeline)
    checkpointer.close()
    pipeline, part = model(), notes()
    checkpointer = checkpointer_of(tmp_path, pipeline, parts={"p": part}, max_streams=2, evict=True)
    assert table_rows(pipeline) == {name: states[name] for name in "cd"}
    assert read_of(part) == {"d": "of d"}
    checkpointer.cache.load_streams(batch(["a"], [3]))
    assert table_rows(pipeline)["a"] == states["a"]
    assert read_of(part) == {"a": "of a", "d": "of d"}


def test_a_name_with_only_a_component_state_is_loaded_too(tmp_path: Path) -> None:
    """A record that waits for other channels has no row yet."""
    checkpointer = small_cache(tmp_path)
    checkpointer.set_components({"p": notes(a="waits")}, {})
    checkpointer.commit({}, {})
    checkpointer.close()
    part = notes()
    checkpointer = checkpointer_of(tmp_path, parts={"p": part}, max_streams=2, evict=True)
    assert read_of(part) == {}
    for name in "abc":
        checkpointer.cache.load_streams(batch([name], [1]))
        checkpointer.commit({}, {})
    assert read_of(part) == {}
    checkpointer.cache.load_streams(batch(["a"], [1]))
    assert read_of(part) == {"a": "waits"}


def test_states_of_a_removed_component_are_not_loaded(tmp_path: Path) -> None:
    """They are still stored before the first commit."""
    checkpointer = small_cache(tmp_path, "a")
    checkpointer.set_components({"p": notes(a="x"), "q": notes(a="y")}, {})
    checkpointer.commit({}, {})
    checkpointer.close()
    part = notes()
    checkpointer = checkpointer_of(tmp_path, parts={"q": part}, max_streams=2, evict=True)
    assert read_of(part) == {"a": "y"}


# ---- the limit of stored streams


def test_beyond_max_stored_streams_new_streams_are_rejected(tmp_path: Path) -> None:
    """Their samples are rejected for this reason, also after a restart; known streams are accepted."""
    checkpointer = small_cache(tmp_path, "a", "b", "c", most=1, max_stored=3)
    for restart in (False, True):
        if restart:
            checkpointer.close()
            checkpointer = checkpointer_of(tmp_path, max_streams=1, evict=True, max_stored_streams=3)
        both = replace(batch(["a", "x", "x", "b"], [7, 1, 2, 7]), rejected=(Rejected(DropReason.STREAM_LIMIT),))
        admitted = checkpointer.cache.load_streams(both)
        assert admitted.rejected_counts == {DropReason.STREAM_LIMIT: 3}
        assert [admitted.stream_names[code] for code in admitted.stream_index] == ["a", "b"]
        assert admitted.received == both.received
        out = checkpointer._pipeline.process(admitted)
        assert "x" not in checkpointer._pipeline.streams
        assert len(out) + sum(out.dropped.values()) == both.received


def test_names_without_any_state_do_not_count(tmp_path: Path) -> None:
    """A name whose samples are all rejected (it is paused) counts only while it is in memory."""
    checkpointer = small_cache(tmp_path, "a", most=1, max_stored=3)
    for turn in range(5):
        for name in ("paused", "a"):
            checkpointer.cache.load_streams(batch([name], [5 + turn]))  # and nothing of it reaches the pipeline
            checkpointer.commit({}, {})
    feed(checkpointer, "b", 1)
    checkpointer.commit({}, {})
    feed(checkpointer, "c", 1)
    assert "c" in checkpointer._pipeline.streams


def test_rejecting_many_streams_compares_each_name_a_few_times(tmp_path: Path) -> None:
    """Not with all others: a message may contain thousands of names."""
    compared = list[int]()

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            compared.append(1)
            return str.__eq__(self, other)

    checkpointer = small_cache(tmp_path, "a", max_stored=1)
    count = 2000
    names = [f"s{number}" for number in range(count)]
    many = replace(batch(names, [1.0] * count), stream_names=tuple(map(Name, names)))
    assert checkpointer.cache.load_streams(many).rejected_counts == {DropReason.STREAM_LIMIT: count}
    assert len(compared) < 10 * count


# ---- resets


def test_an_evicted_stream_is_reset(tmp_path: Path) -> None:
    """It is known; its next sample shows the reset, also after a restart."""
    checkpointer = small_cache(tmp_path, "a", "b", "c", "d")
    assert (
        checkpointer.cache.has_stream("a"),
        checkpointer.cache.has_stream("d"),
        checkpointer.cache.has_stream("x"),
    ) == (
        True,
        True,
        False,
    )
    assert (checkpointer.cache.reset("a"), checkpointer.cache.reset("x")) == (1, 0)
    checkpointer.commit({}, {})
    checkpointer.close()
    checkpointer = small_cache(tmp_path)
    out = checkpointer._pipeline.process(checkpointer.cache.load_streams(batch(["a", "b"], [3, 3])))
    assert out.resets == {ResetReason.COMMAND: 1}
    assert out.reset[0] == ResetReason.COMMAND


@pytest.mark.parametrize("restart", [False, True])
def test_a_reset_of_all_includes_evicted_streams(tmp_path: Path, restart: bool) -> None:
    """Each once, when it is loaded; streams that are new since then are not reset."""
    checkpointer = small_cache(tmp_path, "a", "b", "c", "d")
    assert checkpointer.cache.reset(None) == 4
    for name in "ae":
        feed(checkpointer, name, 3, 4)
        checkpointer.commit({}, {})
    if restart:
        checkpointer.close()
        checkpointer = small_cache(tmp_path)
    resets: dict[tuple[str, int], list[str]] = {}
    for name in "abcdeabcde":
        out = checkpointer._pipeline.process(checkpointer.cache.load_streams(batch([name], [9 + len(resets)])))
        resets[name, len(resets)] = [ResetReason(int(reason)).text for reason in out.reset]
        checkpointer.commit({}, {})
    reset = [name for (name, _), reasons in resets.items() if reasons == ["command"]]
    assert reset == ["b", "c", "d"]


def test_a_reset_of_all_is_committed_with_no_stream_in_memory(tmp_path: Path) -> None:
    """The commit holds nothing else."""
    checkpointer = small_cache(tmp_path, "a", "b")
    checkpointer.cache._evict(["a", "b"])
    checkpointer.cache.reset(None)
    checkpointer.commit({}, {})
    checkpointer.close()
    checkpointer = checkpointer_of(tmp_path)
    out = checkpointer._pipeline.process(batch(["a", "b"], [3, 3]))
    assert out.resets == {ResetReason.COMMAND: 2}


def test_a_damaged_evicted_stream_is_reset_when_it_is_loaded(tmp_path: Path) -> None:
    """With this reason; the loop continues."""
    checkpointer = small_cache(tmp_path, "a", "b", "c")
    checkpointer.close()
    change_store(tmp_path, "UPDATE stream SET row=x'' WHERE name='a'")
    checkpointer = small_cache(tmp_path)
    out = checkpointer._pipeline.process(checkpointer.cache.load_streams(batch(["a"], [3])))
    assert out.resets == {ResetReason.STATE_DAMAGED: 1}
    assert checkpointer.counts.damaged == 1


# ---- a policy change at run time


def test_a_lower_limit_takes_effect_with_the_next_commit(tmp_path: Path) -> None:
    """So does a higher one."""
    checkpointer = small_cache(tmp_path, "a", "b", "c", most=3)
    checkpointer.cache.set_policy(StatePolicy(max_streams=1, evict=True))
    checkpointer.commit({}, {})
    assert checkpointer._pipeline.streams == ("c",)


def test_streams_from_before_eviction_was_enabled_can_be_evicted(tmp_path: Path) -> None:
    """They count as stored."""
    checkpointer = checkpointer_of(tmp_path)
    for name in "abc":
        feed(checkpointer, name, 1)
    checkpointer.commit({}, {})
    checkpointer.cache.set_policy(StatePolicy(max_streams=2, evict=True, max_stored_streams=3))
    checkpointer.commit({}, {})
    assert len(checkpointer._pipeline.streams) == 2
    assert checkpointer.cache.load_streams(batch(["x"], [1])).rejected_counts == {DropReason.STREAM_LIMIT: 1}


def test_disabling_eviction_loads_all_streams(tmp_path: Path) -> None:
    """With their component states; else their next sample would start them as new streams."""
    checkpointer, part = small_cache(tmp_path, "a", "b", "c"), notes(a="of a", x="of x")
    checkpointer.set_components({"p": part}, {})
    checkpointer.commit({}, {})
    part.evict("a")
    part.evict("x")
    checkpointer.cache.set_policy(StatePolicy(max_streams=2))
    assert set(checkpointer._pipeline.streams) == {"a", "b", "c"}
    assert read_of(part) == {"a": "of a"}
    assert part.get("x") == Note("of x")
    assert checkpointer._pipeline.process(checkpointer.cache.load_streams(batch(["a"], [3]))).resets == {}


# ---- resident keys


@given(st.lists(st.lists(st.sampled_from("abcdefg"), max_size=4), max_size=20), st.integers(0, 4))
def test_lru_keys_keep_the_most_recently_used_names(turns: list[list[str]], most: int) -> None:
    """The surplus is the least recently used names, oldest first."""
    resident_keys, order = LruKeys(most), list[str]()
    for names in turns:
        resident_keys.use(names)
        for name in names:
            order = [one for one in order if one != name] + [name]
        split = max(0, len(order) - most)
        assert resident_keys.pop_surplus() == order[:split]
        order = order[split:]
        assert len(resident_keys) == len(order)
        assert all(name in resident_keys for name in order)
    assert resident_keys.pop_surplus() == []
