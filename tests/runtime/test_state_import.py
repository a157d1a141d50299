"""Importing and deleting streams at run time: within the limits, and in one transaction."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_gru.core.errors import StateError
from stream_gru.core.types import DropReason, ResetReason
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.state_export import StreamExport, build_export
from tests.runtime.test_checkpointer import notes, read_of
from tests.support.batches import batch
from tests.support.stores import checkpointer_of, copy_of_now, feed, model, opened

NEW = b"\x91\xa3new"


def foreign_state(name: str, **memories: bytes) -> StreamExport:
    """Return an export of a stream."""
    pipeline = model()
    pipeline.process(batch([name] * 2, [1, 2]))
    return build_export(name, pipeline.row_schema, pipeline.table.row(name), memories)


def small_cache(folder: Path, *names: str, max_stored: int = 100, **parts: object) -> Checkpointer:
    """Return a checkpointer with room for one stream, into which these came one by one."""
    checkpointer = checkpointer_of(folder, parts=parts, max_streams=1, evict=True, max_stored_streams=max_stored)  # type: ignore[arg-type]
    for name in names:
        feed(checkpointer, name, 1, 2)
        checkpointer.commit({}, {})
    return checkpointer


# ---- limits


def test_a_stream_beyond_the_limit_is_not_imported(tmp_path: Path) -> None:
    """Without eviction the message names the limit; an existing stream can be replaced."""
    checkpointer = checkpointer_of(tmp_path, max_streams=2)
    feed(checkpointer, "a", 1)
    checkpointer.import_stream(foreign_state("b"))
    with pytest.raises(
        StateError, match=r"stream c: expected at most run\.max_streams = 2 streams, got 2 and this one; raise it"
    ):
        checkpointer.import_stream(foreign_state("c"))
    checkpointer.import_stream(foreign_state("a"))
    assert checkpointer._pipeline.streams == ("b", "a")


def test_an_imported_stream_counts_as_stored(tmp_path: Path) -> None:
    """At the limit no new stream is imported or accepted; a known one is, evicted or not."""
    checkpointer = small_cache(tmp_path, "a", max_stored=3)
    checkpointer.import_stream(foreign_state("b"))
    checkpointer.import_stream(foreign_state("b"))
    checkpointer.commit({}, {})
    checkpointer.import_stream(foreign_state("c"))
    with pytest.raises(
        StateError, match=r"stream d: expected at most run\.max_stored_streams = 3 streams, got 3 and this one"
    ):
        checkpointer.import_stream(foreign_state("d"))
    assert checkpointer.cache.load_streams(batch(["d"], [1])).rejected_counts == {DropReason.STREAM_LIMIT: 1}
    checkpointer.commit({}, {})
    checkpointer.import_stream(foreign_state("a"))
    checkpointer.commit({}, {})
    assert checkpointer.store is not None
    assert checkpointer.store.names() == ["a", "b", "c"]


# ---- the replaced stream


def test_an_import_leaves_nothing_of_the_replaced_stream(tmp_path: Path) -> None:
    """Also of components that do not exist here, in the same transaction; a kill before it changes nothing."""
    checkpointer = small_cache(tmp_path / "a", "a", p=notes(a="old"), q=notes(a="old"))
    checkpointer.set_components({"p": checkpointer.cache.components["p"]}, {})
    checkpointer.import_stream(foreign_state("a", p=NEW))
    with opened(copy_of_now(tmp_path / "a", tmp_path / "b")) as killed:
        assert sorted(killed.states_of_stream("a")) == ["p", "q"]
    checkpointer.commit({}, {})
    assert checkpointer.store is not None
    assert checkpointer.store.states_of_stream("a") == {"p": NEW}


def test_a_failed_import_does_not_change_an_evicted_stream(tmp_path: Path) -> None:
    """Its stored states remain, though no component has them in memory."""
    part = notes(a="of a")
    checkpointer = small_cache(tmp_path, "a", "b", p=part)
    assert read_of(part) == {}
    with pytest.raises(StateError, match="stored state of notes, a is corrupt"):
        checkpointer.import_stream(foreign_state("a", p=b"\xc1"))
    feed(checkpointer, "b", 3)
    checkpointer.commit({}, {})
    assert checkpointer.store is not None
    assert sorted(checkpointer.store.states_of_stream("a")) == ["p"]
    assert checkpointer.store.row("a") is not None


# ---- deletion


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_deleted_stream_is_gone(tmp_path: Path, name: str) -> None:
    """In memory or evicted: unknown at once, deleted from the store with the next commit, and its place is free."""
    part = notes(a="of a")
    checkpointer = small_cache(tmp_path / "s", "a", "b", max_stored=2, p=part)
    other = "b" if name == "a" else "a"
    checkpointer.cache.delete_stream(name)
    assert (
        checkpointer.cache.stream_names(),
        checkpointer.cache.has_stream(name),
        checkpointer.export_stream(name),
        checkpointer.cache.reset(name),
    ) == (
        [other],
        False,
        None,
        0,
    )
    assert part.get(name) is None
    with opened(copy_of_now(tmp_path / "s", tmp_path / "killed")) as killed:
        assert killed.names() == ["a", "b"]
    checkpointer.commit({}, {})
    assert checkpointer.store is not None
    assert (checkpointer.store.names(), checkpointer.store.states_of_stream(name)) == ([other], {})
    feed(checkpointer, "c", 1)
    checkpointer.commit({}, {})
    assert checkpointer.store.names() == sorted((other, "c"))
    assert checkpointer.cache.load_streams(batch(["d"], [1])).rejected_counts == {DropReason.STREAM_LIMIT: 1}


def test_a_deleted_stream_that_sends_again_is_a_new_one(tmp_path: Path) -> None:
    """Even before the commit that deletes it."""
    checkpointer = small_cache(tmp_path, "a", "b", p=notes(a="of a"))
    checkpointer.cache.delete_stream("a")
    out = checkpointer._pipeline.process(checkpointer.cache.load_streams(batch(["a"], [1])))
    assert out.resets == {ResetReason.FIRST_SAMPLE: 1}
    checkpointer.commit({}, {})
    assert checkpointer.store is not None
    assert (checkpointer.store.names(), checkpointer.store.states_of_stream("a")) == (["a", "b"], {})
    assert checkpointer.cache.has_stream("a")


def test_a_deleted_stream_can_be_imported(tmp_path: Path) -> None:
    """And an imported one can be deleted."""
    checkpointer = small_cache(tmp_path, "a", p=notes(a="old"))
    checkpointer.cache.delete_stream("a")
    checkpointer.import_stream(foreign_state("a", p=NEW))
    checkpointer.commit({}, {})
    assert checkpointer.store is not None
    assert checkpointer.store.states_of_stream("a") == {"p": NEW}
    checkpointer.import_stream(foreign_state("a"))
    checkpointer.cache.delete_stream("a")
    checkpointer.commit({}, {})
    assert (
        checkpointer.store.names(),
        checkpointer.store.states_of_stream("a"),
        checkpointer.cache.stream_names(),
    ) == ([], {}, [])


def test_without_a_store_a_stream_is_deleted_in_memory() -> None:
    """There is no other place."""
    part = notes(a="x")
    checkpointer = Checkpointer(model(), components={"p": part})
    feed(checkpointer, "a", 1)
    feed(checkpointer, "b", 1)
    checkpointer.cache.delete_stream("a")
    checkpointer.commit({}, {})
    assert (checkpointer.cache.stream_names(), read_of(part)) == (["b"], {})


def test_a_reset_of_all_is_exported_with_an_evicted_stream(tmp_path: Path) -> None:
    """Its next sample is reset elsewhere, as it would have been here."""
    checkpointer = small_cache(tmp_path, "a", "b")
    checkpointer.cache.reset(None)
    checkpointer.commit({}, {})
    moved = checkpointer.export_stream("a")
    assert moved is not None
    elsewhere = checkpointer_of(tmp_path / "elsewhere")
    elsewhere.import_stream(moved)
    assert elsewhere._pipeline.process(batch(["a"], [3])).reset.tolist() == [ResetReason.COMMAND]
