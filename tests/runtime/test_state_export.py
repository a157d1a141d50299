"""One stream as a file: read back unchanged, rejected if anything was changed."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.core.errors import IncompatibleStateError, StateError
from stream_gru.core.types import ResetReason
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.state_table import split_row
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.state_export import (
    StreamExport,
    build_export,
    describe,
    export_from_json,
    export_from_store,
    export_to_json,
    require_same_model,
    reset_row,
)
from stream_gru.runtime.control.commands import MAX_STATE_BYTES
from tests.runtime.test_checkpointer import Note, notes, read_of
from tests.support.batches import batch, rows_of
from tests.support.stores import change_store, checkpointer_of, feed, model, opened, table_rows


def trained_stream(*times_s: float, pipeline: Pipeline | None = None) -> Pipeline:
    """Return a pipeline in which stream a has samples at these times."""
    pipeline = pipeline or model()
    pipeline.process(batch(["a"] * len(times_s), times_s))
    return pipeline


def exported_state(pipeline: Pipeline, **memories: bytes) -> StreamExport:
    """Return an export of stream a."""
    return build_export("a", pipeline.row_schema, pipeline.table.row("a"), memories)


STATE = exported_state(trained_stream(1, 2, 3), clock=b"12")
TEXT = export_to_json(STATE)


def test_a_state_is_read_as_it_was_written() -> None:
    """Equal states give equal bytes."""
    assert export_from_json(TEXT) == STATE
    assert export_to_json(export_from_json(TEXT)) == TEXT


@given(st.integers(0, len(TEXT) - 1), st.binary(min_size=1, max_size=3))
def test_a_changed_state_is_rejected_or_equal(place: int, other: bytes) -> None:
    """No change of any byte gives another stream, row or component state."""
    data = TEXT[:place] + other + TEXT[place + len(other) :]
    try:
        assert export_from_json(data) == msgspec.structs.replace(STATE, model_id=export_from_json(data).model_id)
    except StateError:
        assert data != TEXT


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stream_gru_state": 1}, "expected a state of format 2, got format 1"),
        ({"stream": "a+b"}, "stream: expected 1 to 128 of the characters"),
        ({"stream": "b"}, "stream b: wrong checksum: the file was changed or damaged"),
        ({"row_schema": "{}"}, "wrong checksum"),
        ({"more": 1}, "expected a file written by `stream-gru state export`"),
        ({"row": "AAAA"}, "wrong checksum"),
    ],
)
def test_an_invalid_state_is_rejected(changes: dict[str, object], words: str) -> None:
    """The message names what was expected."""
    with pytest.raises(StateError, match=words):
        export_from_json(json.dumps({**json.loads(TEXT), **changes}).encode())


def test_a_row_that_does_not_fit_its_schema_is_rejected() -> None:
    """Although the checksum is right."""
    with pytest.raises(StateError, match="expected a row of 385 bytes, got 5"):
        export_from_json(export_to_json(build_export("a", model().row_schema, b"short", {})))


def test_a_file_that_is_too_large_is_not_read() -> None:
    """The limit is far above any real state."""
    with pytest.raises(StateError, match=f"at most {MAX_STATE_BYTES} bytes"):
        export_from_json(b" " * (MAX_STATE_BYTES + 1))


def test_a_state_of_another_model_is_rejected() -> None:
    """So is one of the same model with other columns."""
    require_same_model(STATE, model().row_schema)
    with pytest.raises(IncompatibleStateError, match="expected a state of model test-1, got one of test-0"):
        require_same_model(STATE, model(seed=1).row_schema)
    with pytest.raises(IncompatibleStateError, match="expected the columns of this version"):
        require_same_model(STATE, model(units=5).row_schema)


def test_describe_returns_the_facts_of_a_state() -> None:
    """Time and steps, the size of the hidden state, and a pending reset."""
    pipeline = trained_stream(1, 2, 3)
    facts = describe(exported_state(pipeline, clock=b"12"))
    assert (facts["stream"], facts["model_id"], facts["steps_since_reset"]) == ("a", "test-0", 3)
    assert facts["time"] == "2026-03-01T00:00:03Z"
    assert (facts["reset_before_next"], facts["components"]) == (None, ["clock"])
    assert facts["hidden"]["size"] == 8
    assert facts["hidden"]["finite"]
    assert facts["last_values"] == [2.0, 3.0, 4.0]
    pipeline.reset_damaged("a", ResetReason.STATE_DAMAGED)
    facts = describe(exported_state(pipeline))
    assert (facts["time"], facts["reset_before_next"]) == (None, "state_damaged")
    assert facts["last_values"] == [None, None, None]
    json.dumps(facts)


def test_a_row_is_reset_as_a_pipeline_would() -> None:
    """The first reason is kept."""
    pipeline = trained_stream(1, 2, 3)
    row = reset_row(pipeline.row_schema, pipeline.table.row("a"))
    pipeline.reset("a")
    assert row == pipeline.table.row("a")
    again = reset_row(pipeline.row_schema, row, ResetReason.MODEL_CHANGED)
    assert split_row(pipeline.table.row_layout, again)["pending_reset"] == ResetReason.COMMAND


# ---- between stores and running daemons


def test_a_state_is_exported_from_a_store(tmp_path: Path) -> None:
    """With its undamaged component states; None for an unknown stream, an error for a damaged one."""
    checkpointer = checkpointer_of(tmp_path, parts={"p": notes(a="x"), "q": notes(a="y")})
    feed(checkpointer, "a", 1, 2)
    checkpointer.commit({}, {})
    expected = checkpointer.export_stream("a")
    checkpointer.close()
    with opened(tmp_path) as store:
        assert export_from_store(store, "a") == expected
        assert export_from_store(store, "b") is None
    change_store(tmp_path, "UPDATE component_state SET crc=crc+1 WHERE component='q'")
    with opened(tmp_path) as store:
        found = export_from_store(store, "a")
        assert found is not None
        assert list(found.components) == ["p"]
    change_store(tmp_path, "UPDATE stream SET crc=crc+1")
    with opened(tmp_path) as store, pytest.raises(StateError, match="stream a: stored state is damaged"):
        export_from_store(store, "a")


def test_a_stream_continues_at_another_gateway(tmp_path: Path) -> None:
    """Outputs equal those of a stream that never moved; the import is stored, and old component states are gone."""
    here = checkpointer_of(tmp_path / "here", parts={"p": notes(a="of a")})
    feed(here, "a", 1, 2)
    state = here.export_stream("a")
    assert state is not None
    assert here.export_stream("b") is None
    parts = {"p": notes(a="old"), "q": notes(a="old")}
    there = checkpointer_of(tmp_path / "there", parts=parts)
    feed(there, "a", 50)
    there.commit({}, {})
    more = msgspec.structs.replace(state, components={**state.components, "absent": b"x"})
    assert there.import_stream(more) == ["absent"]
    there.commit({}, {})
    there.close()

    pipeline, parts = model(), {"p": notes(), "q": notes()}
    checkpointer_of(tmp_path / "there", pipeline, parts=parts)
    assert table_rows(pipeline) == table_rows(here._pipeline)
    assert (read_of(parts["p"]), read_of(parts["q"])) == ({"a": "of a"}, {})
    alone = trained_stream(1, 2)
    assert rows_of([pipeline.process(batch(["a"], [3]))]) == rows_of([alone.process(batch(["a"], [3]))])


def test_a_state_that_a_component_cannot_read_changes_nothing(tmp_path: Path) -> None:
    """Neither the row nor any component state, now and after a restart."""
    parts = {"p": notes(a="of a"), "q": notes(), "r": notes(a="of a")}
    checkpointer = checkpointer_of(tmp_path, parts=parts)
    feed(checkpointer, "a", 1, 2)
    row = checkpointer._pipeline.table.row("a")
    memories = {"p": b"\x91\xa3new", "q": b"\x91\xa3new", "r": b"\xc1"}
    with pytest.raises(StateError, match="stored state of notes, a is corrupt"):
        checkpointer.import_stream(
            build_export("a", checkpointer._pipeline.row_schema, trained_stream(5).table.row("a"), memories)
        )
    for _ in range(2):
        assert [read_of(part) for part in parts.values()] == [{"a": "of a"}, {}, {"a": "of a"}]
        assert checkpointer._pipeline.table.row("a") == row
        checkpointer.commit({}, {})
        checkpointer.close()
        parts = {"p": notes(), "q": notes(), "r": notes()}
        checkpointer = checkpointer_of(tmp_path, parts=parts)


def test_an_evicted_stream_is_exported_as_it_is_stored(tmp_path: Path) -> None:
    """It is not loaded for that."""
    checkpointer = checkpointer_of(tmp_path, max_streams=1, evict=True)
    for name in "ab":
        feed(checkpointer, name, 1, 2)
        checkpointer.commit({}, {})
    assert checkpointer._pipeline.streams == ("b",)
    state = checkpointer.export_stream("a")
    assert state is not None
    assert state.row == trained_stream(1, 2).table.row("a")
    assert checkpointer.export_stream("x") is None
    assert checkpointer.import_stream(state) == []
    checkpointer.commit({}, {})
    assert checkpointer._pipeline.streams == ("a",)


def test_without_a_store_streams_are_exported_from_memory() -> None:
    """There is no other place."""
    checkpointer = Checkpointer(model(), components={"p": notes(a="x")})
    feed(checkpointer, "a", 1)
    state = checkpointer.export_stream("a")
    assert state is not None
    assert msgspec.msgpack.decode(state.components["p"], type=Note) == Note("x")
    assert checkpointer.export_stream("b") is None
