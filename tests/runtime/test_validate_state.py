"""An imported state is rejected or harmless: no later sample ends the daemon."""

from __future__ import annotations

import json
from functools import cache

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.core.errors import StateError
from stream_gru.core.types import ResetReason, SampleBatch, Status
from stream_gru.model.bundle import Bundle
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.pipeline.state_table import split_row
from stream_gru.runtime.checkpoint.sqlite_file import checksum
from stream_gru.runtime.checkpoint.state_export import (
    StreamExport,
    build_export,
    describe,
    export_from_json,
    export_to_json,
    require_same_model,
)
from tests.support.batches import batch, hostile_batches
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated, toy_pipeline
from tests.support.stores import FORM


@cache
def _bundle_of_kind(kind: str) -> Bundle:
    if kind == "categories":
        return calibrated(make_bundle(channels=2, categories=(3,), embedding=2, targets=1, warm_up=2, calendar=1))
    if kind == "quantiles":
        return calibrated(make_bundle(targets=1, quantiles=(0.1, 0.5, 0.9), horizon=2))
    return calibrated(make_bundle(labels=2, horizon=0, targets=0) if kind == "classes" else make_bundle())


KINDS = ["plain", "categories", "quantiles", "classes"]


def row_of(pipeline: Pipeline, columns: dict[str, np.ndarray]) -> bytes:
    """Return the bytes of a row with these columns."""
    form = pipeline.row_schema.columns
    return b"".join(np.ascontiguousarray(columns[name], dtype=kind).tobytes() for name, kind, _ in form)


def begun(kind: str, stream: str = "s0") -> Pipeline:
    """Return a pipeline in which a stream has a few samples."""
    pipeline = Pipeline(_bundle_of_kind(kind), "numpy")
    pipeline.process(batch([stream] * 3, [-3, -2, -1], [[1.0, 2.0, 1.0]] * 3))
    return pipeline


def changed(pipeline: Pipeline, **changes: object) -> StreamExport:
    """Return stream s0 with other numbers in some columns, and a right checksum."""
    columns = split_row(pipeline.row_schema.columns, pipeline.table.row("s0"))
    for name, value in changes.items():
        columns[name] = np.full_like(columns[name], value)
    return build_export("s0", pipeline.row_schema, row_of(pipeline, columns), {})


_WHOLE = [-(2**63), -(2**62), -(2**31), -1, 0, 1, 2**31 - 1, 2**53, 2**63 - 1]
_REAL = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40, -1.0, 0.0, 0.5, 7.0]


@st.composite
def _rows(draw: st.DrawFn, pipeline: Pipeline) -> bytes:
    """Draw a row with extreme numbers in up to three columns, or any bytes."""
    columns = {
        name: array.copy() for name, array in split_row(pipeline.row_schema.columns, pipeline.table.row("s0")).items()
    }
    for name in draw(st.lists(st.sampled_from(sorted(columns)), min_size=1, max_size=3, unique=True)):
        array = columns[name]
        if draw(st.booleans()):
            data = draw(st.binary(min_size=array.nbytes, max_size=array.nbytes))
            columns[name] = np.frombuffer(data, array.dtype).reshape(array.shape)
            continue
        if array.dtype.kind == "f":
            value: float = draw(st.sampled_from(_REAL))
        else:
            info = np.iinfo(array.dtype)
            value = min(max(draw(st.sampled_from(_WHOLE)), int(info.min)), int(info.max))
        some = np.array(draw(st.lists(st.booleans(), min_size=array.size, max_size=array.size))).reshape(array.shape)
        columns[name] = np.where(some, np.array(value, array.dtype), array)
    return row_of(pipeline, columns)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(data=st.data())
def test_no_accepted_row_can_end_the_loop(kind: str, data: st.DataObject) -> None:
    """Samples of any kind are processed, and the state can be described and stored again."""
    pipeline = begun(kind)
    row = data.draw(_rows(pipeline))
    try:
        state = export_from_json(export_to_json(build_export("s0", pipeline.row_schema, row, {})))
    except StateError:
        return
    with np.errstate(all="ignore"):  # what numpy warns of ends nothing
        require_same_model(state, pipeline.row_schema)
        pipeline.restore_stream("s0", RowSchema.read(state.row_schema), state.row)
        json.dumps(describe(state), allow_nan=False)
        pipeline.process(batch(["s0"], [0], [[1.0, 2.0, 1.0]]))
        for _ in range(2):
            pipeline.process(data.draw(hostile_batches(40)))
        pipeline.stream_progress(10)
        pipeline.scores("s0")
        pipeline.table.dirty_rows()


@settings(max_examples=40)
@given(st.lists(hostile_batches(60), min_size=1, max_size=3), st.booleans())
def test_every_row_that_a_pipeline_writes_is_accepted(batches: list[SampleBatch], numpy: bool) -> None:
    """After any samples."""
    pipeline = Pipeline(_bundle_of_kind("plain"), "numpy") if numpy else toy_pipeline()
    with np.errstate(all="ignore"):
        for one in batches:
            pipeline.process(one)
    pipeline.reset_damaged("fresh", ResetReason.STATE_DAMAGED)
    for name in pipeline.streams:
        state = build_export(name, pipeline.row_schema, pipeline.table.row(name), {})
        assert export_from_json(export_to_json(state)) == state


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pending_reset": 200}, "pending_reset: expected the number of a reset reason, got 200"),
        ({"pending_reset": 11}, "pending_reset: expected the number of a reset reason, got 11"),
        ({"steps_since_reset": -1}, "steps_since_reset: expected numbers from 0 to"),
        ({"invalid_run": 2**31 - 1}, "invalid_run: expected numbers from 0 to"),
        ({"scored_steps": 2**63 - 1}, "scored_steps: expected numbers from 0 to"),
        ({"interval_scale": np.nan}, "interval_scale: expected numbers from 0.001 to 1e"),
        ({"interval_scale": -1.0}, "interval_scale: expected numbers"),
        ({"block_truths": -1}, "block_truths: expected numbers"),
        ({"score_sums": np.inf}, "score_sums: expected numbers"),
        ({"consecutive_misses": -1}, "consecutive_misses: expected numbers"),
        ({"last_valid": np.inf}, "last_valid: expected finite numbers, or NaN"),
        ({"applied_values": -np.inf}, "applied_values: expected finite numbers, or NaN"),
        ({"applied_values": np.nan}, "applied_values: expected numbers, as no reset is pending"),
    ],
)
def test_a_row_that_no_pipeline_writes_is_rejected(changes: dict[str, object], words: str) -> None:
    """The message names the stream and the column."""
    with pytest.raises(StateError, match=f"stream s0: {words}"):
        export_from_json(export_to_json(changed(begun("plain"), **changes)))


def test_a_non_finite_hidden_state_is_accepted_and_reset() -> None:
    """As one that became non-finite here: at the second sample, for this reason."""
    pipeline = begun("plain")
    state = export_from_json(export_to_json(changed(pipeline, h=np.nan)))
    pipeline.restore_stream("s0", RowSchema.read(state.row_schema), state.row)
    out = pipeline.process(batch(["s0"] * 2, [0, 1], [[1.0, 2.0, 1.0]] * 2))
    assert out.resets == {ResetReason.NON_FINITE_STATE: 1}
    assert out.status[-1] != Status.DEGRADED
    assert describe(state)["hidden"]["norm"] is None


def _with(**changes: object) -> str:
    return json.dumps({**json.loads(FORM.text), **changes})


@pytest.mark.parametrize(
    "text",
    [
        FORM.text.replace('"period_s": 1.0', f'"period_s": {"9" * 400}'),
        FORM.text.replace('"period_s": 1.0', '"period_s": NaN'),
        FORM.text.replace('"period_s": 1.0', '"period_s": 1e999'),
        _with(columns=[["h", "<f4", [10**30]]]),
        FORM.text.replace('["h", "<f4", [8]]', '["h", "<f4", [1e999]]'),
        _with(columns=[["h", "<f4", [2**31, 2**31]]]),
        _with(columns=[["h", "<f4", [-1]]]),
        _with(columns=[["h", "<f4", [1] * 100]]),
        _with(columns=[["h", "f4,,(", []]]),
        _with(columns=[["h", "O", []]]),
        _with(columns=[["h", ["<f4"], []]]),
        _with(columns=[["h", "<f4", []], ["h", "<f4", []]]),
        "[" * 100_000,
        _with(channels=5),
        "7",
    ],
)
def test_an_invalid_schema_is_only_a_state_error(text: str) -> None:
    """Numbers that are too large, brackets nested too deep, types that numpy would guess."""
    forged = StreamExport(1, "a", FORM.model_id, text, b"x", {}, checksum("a", text, b"x"))
    with pytest.raises(StateError, match=r"form|column|row"):
        export_from_json(export_to_json(forged))


def test_a_schema_without_the_common_columns_is_rejected() -> None:
    """Such a state cannot be described."""
    columns = tuple(one for one in FORM.columns if one[0] != "max_event_ns")
    with pytest.raises(StateError, match="max_event_ns: expected a column"):
        export_from_json(export_to_json(build_export("a", schema_of(columns), bytes(377), {})))
    columns = tuple((name, kind, (2, 4) if name == "h" else shape) for name, kind, shape in FORM.columns)
    with pytest.raises(StateError, match="h: expected a column"):
        export_from_json(export_to_json(build_export("a", schema_of(columns), bytes(385), {})))


def test_a_state_that_names_another_model_than_its_row_is_rejected() -> None:
    """People read the one, the gateway uses the other."""
    state = changed(begun("plain"))
    with pytest.raises(StateError, match="expected a row of model 'other', got 'test-0'"):
        export_from_json(export_to_json(msgspec.structs.replace(state, model_id="other")))


def schema_of(columns: tuple[tuple[str, str, tuple[int, ...]], ...]) -> RowSchema:
    """Return the schema with other columns."""
    return RowSchema(FORM.model_id, FORM.channels, FORM.period_s, columns)
