"""Streams that are taken in or forgotten while a keeper runs: within its limits, and in one transaction."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_gru.core.errors import StateError
from stream_gru.core.types import DropReason, ResetReason
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.state_export import StreamExport, build_export
from tests.runtime.test_checkpointer import notes, read_of
from tests.support.batches import batch
from tests.support.stores import copy_of_now, feed, keeper_of, model, opened

NEW = b"\x91\xa3new"


def state_of(name: str, **memories: bytes) -> StreamExport:
    """A stream from elsewhere."""
    pipeline = model()
    pipeline.process(batch([name] * 2, [1, 2]))
    return build_export(name, pipeline.row_schema, pipeline.table.row(name), memories)


def crowd(folder: Path, *names: str, max_stored: int = 100, **parts: object) -> Checkpointer:
    """A keeper with room for one stream, in which these came one after the other."""
    keeper = keeper_of(folder, parts=parts, max_streams=1, evict=True, max_stored_streams=max_stored)  # type: ignore[arg-type]
    for name in names:
        feed(keeper, name, 1, 2)
        keeper.commit({}, {})
    return keeper


# ---- how many


def test_a_stream_too_many_is_not_taken_in(tmp_path: Path) -> None:
    """Where nobody makes room the message names the limit; one that is here already may be replaced."""
    keeper = keeper_of(tmp_path, max_streams=2)
    feed(keeper, "a", 1)
    keeper.import_stream(state_of("b"))
    with pytest.raises(
        StateError, match=r"stream c: expected at most run\.max_streams = 2 streams, got 2 and this one; raise it"
    ):
        keeper.import_stream(state_of("c"))
    keeper.import_stream(state_of("a"))
    assert keeper._pipeline.streams == ("b", "a")


def test_a_stream_that_is_taken_in_counts_as_kept(tmp_path: Path) -> None:
    """Beyond the most no further one is taken in or admitted; one that is known is, evicted or not."""
    keeper = crowd(tmp_path, "a", max_stored=3)
    keeper.import_stream(state_of("b"))
    keeper.import_stream(state_of("b"))
    keeper.commit({}, {})
    keeper.import_stream(state_of("c"))
    with pytest.raises(
        StateError, match=r"stream d: expected at most run\.max_stored_streams = 3 streams, got 3 and this one"
    ):
        keeper.import_stream(state_of("d"))
    assert keeper.cache.load_streams(batch(["d"], [1])).rejected_counts == {DropReason.STREAM_LIMIT: 1}
    keeper.commit({}, {})
    keeper.import_stream(state_of("a"))
    keeper.commit({}, {})
    assert keeper.store is not None
    assert keeper.store.names() == ["a", "b", "c"]


# ---- what is left of the old one


def test_what_is_taken_in_leaves_nothing_of_the_old_one(tmp_path: Path) -> None:
    """Also of parts that are not here, in the same transaction; a kill before it leaves all as it was."""
    keeper = crowd(tmp_path / "a", "a", p=notes(a="old"), q=notes(a="old"))
    keeper.set_components({"p": keeper.cache.components["p"]}, {})
    keeper.import_stream(state_of("a", p=NEW))
    with opened(copy_of_now(tmp_path / "a", tmp_path / "b")) as killed:
        assert sorted(killed.states_of_stream("a")) == ["p", "q"]
    keeper.commit({}, {})
    assert keeper.store is not None
    assert keeper.store.states_of_stream("a") == {"p": NEW}


def test_a_state_that_cannot_be_read_harms_no_evicted_stream(tmp_path: Path) -> None:
    """What is stored of it stays, though none of its parts has it in memory."""
    part = notes(a="of a")
    keeper = crowd(tmp_path, "a", "b", p=part)
    assert read_of(part) == {}
    with pytest.raises(StateError, match="stored state of notes, a is corrupt"):
        keeper.import_stream(state_of("a", p=b"\xc1"))
    feed(keeper, "b", 3)
    keeper.commit({}, {})
    assert keeper.store is not None
    assert sorted(keeper.store.states_of_stream("a")) == ["p"]
    assert keeper.store.row("a") is not None


# ---- forgotten


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_stream_that_is_forgotten_is_gone(tmp_path: Path, name: str) -> None:
    """In memory or evicted: at once for all who ask, with the next commit in the store, and its place is free."""
    part = notes(a="of a")
    keeper = crowd(tmp_path / "s", "a", "b", max_stored=2, p=part)
    other = "b" if name == "a" else "a"
    keeper.cache.delete_stream(name)
    assert (
        keeper.cache.stream_names(),
        keeper.cache.has_stream(name),
        keeper.export_stream(name),
        keeper.cache.reset(name),
    ) == (
        [other],
        False,
        None,
        0,
    )
    assert part.get(name) is None
    with opened(copy_of_now(tmp_path / "s", tmp_path / "killed")) as killed:
        assert killed.names() == ["a", "b"]
    keeper.commit({}, {})
    assert keeper.store is not None
    assert (keeper.store.names(), keeper.store.states_of_stream(name)) == ([other], {})
    feed(keeper, "c", 1)
    keeper.commit({}, {})
    assert keeper.store.names() == sorted((other, "c"))
    assert keeper.cache.load_streams(batch(["d"], [1])).rejected_counts == {DropReason.STREAM_LIMIT: 1}


def test_a_forgotten_stream_that_is_heard_again_is_a_new_one(tmp_path: Path) -> None:
    """Though the commit that deletes it is still to come."""
    keeper = crowd(tmp_path, "a", "b", p=notes(a="of a"))
    keeper.cache.delete_stream("a")
    out = keeper._pipeline.process(keeper.cache.load_streams(batch(["a"], [1])))
    assert out.resets == {ResetReason.FIRST_SAMPLE: 1}
    keeper.commit({}, {})
    assert keeper.store is not None
    assert (keeper.store.names(), keeper.store.states_of_stream("a")) == (["a", "b"], {})
    assert keeper.cache.has_stream("a")


def test_a_forgotten_stream_may_be_taken_in(tmp_path: Path) -> None:
    """The other way round, too."""
    keeper = crowd(tmp_path, "a", p=notes(a="old"))
    keeper.cache.delete_stream("a")
    keeper.import_stream(state_of("a", p=NEW))
    keeper.commit({}, {})
    assert keeper.store is not None
    assert keeper.store.states_of_stream("a") == {"p": NEW}
    keeper.import_stream(state_of("a"))
    keeper.cache.delete_stream("a")
    keeper.commit({}, {})
    assert (keeper.store.names(), keeper.store.states_of_stream("a"), keeper.cache.stream_names()) == ([], {}, [])


def test_without_a_store_a_stream_is_forgotten_in_memory() -> None:
    """There is nowhere else."""
    part = notes(a="x")
    keeper = Checkpointer(model(), components={"p": part})
    feed(keeper, "a", 1)
    feed(keeper, "b", 1)
    keeper.cache.delete_stream("a")
    keeper.commit({}, {})
    assert (keeper.cache.stream_names(), read_of(part)) == (["b"], {})


def test_a_reset_of_all_goes_with_a_stream_that_made_room(tmp_path: Path) -> None:
    """What is exported of it is reset elsewhere before its next sample, as it would have been here."""
    keeper = crowd(tmp_path, "a", "b")
    keeper.cache.reset(None)
    keeper.commit({}, {})
    moved = keeper.export_stream("a")
    assert moved is not None
    elsewhere = keeper_of(tmp_path / "elsewhere")
    elsewhere.import_stream(moved)
    assert elsewhere._pipeline.process(batch(["a"], [3])).reset.tolist() == [ResetReason.COMMAND]
