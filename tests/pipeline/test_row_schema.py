"""The schema of stored rows: read back as written, and the columns another model can use."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.core.errors import StateError
from stream_gru.pipeline.row_schema import RowSchema
from tests.support.stores import FORM, model

NAMES = {name for name, _, _ in FORM.columns}
VALUES = {"applied_ns", "applied_values", "last_valid", "invalid_run", "steps_since_reset"}
CLOCK = {"max_event_ns", "episode", "pending_reset"}


def test_a_schema_is_read_as_it_was_written() -> None:
    """Text and back gives the same schema and the same text."""
    assert RowSchema.read(FORM.text) == FORM
    assert RowSchema.read(FORM.text).text == FORM.text
    assert FORM.model_id == "test-0"
    assert {"h", "max_event_ns"} <= NAMES


def test_equal_models_have_equal_schemas() -> None:
    """Other models have other schemas."""
    assert model().row_schema.text == FORM.text
    assert len({model(seed).row_schema.text for seed in range(3)}) == 3


_texts = st.text(max_size=20) | st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(json.loads(FORM.text))), inner),
).map(json.dumps)


@given(_texts)
def test_an_invalid_schema_is_a_state_error(text: str) -> None:
    """Any text is a schema or a StateError."""
    with suppress(StateError):
        found = RowSchema.read(text)
        assert RowSchema.read(found.text) == found


@pytest.mark.parametrize("key", sorted(json.loads(FORM.text)))
def test_each_key_is_needed(key: str) -> None:
    """A missing key is an error, not a default."""
    data = json.loads(FORM.text)
    del data[key]
    with pytest.raises(StateError, match=key):
        RowSchema.read(json.dumps(data))


def test_the_same_model_keeps_everything() -> None:
    """All columns with the same layout; a changed one is not kept."""
    assert set(FORM.compatible_columns(FORM)) == NAMES
    other = replace(FORM, columns=tuple((n, k, (99,) if n == "h" else s) for n, k, s in FORM.columns))
    assert set(FORM.compatible_columns(other)) == NAMES - {"h"}
    assert set(FORM.compatible_columns(replace(FORM, columns=FORM.columns[:2]))) == {
        FORM.columns[0][0],
        FORM.columns[1][0],
    }


def test_another_model_of_the_same_channels_keeps_order_and_values() -> None:
    """It keeps neither the hidden state nor the scores."""
    assert set(FORM.compatible_columns(replace(FORM, model_id="other"))) == CLOCK | VALUES


@pytest.mark.parametrize("change", [{"channels": ("c0", "c2", "c1")}, {"period_s": 2.0}])
def test_a_model_of_other_channels_or_period_keeps_the_order(change: dict[str, object]) -> None:
    """Channels in another order count as other channels."""
    other = replace(FORM, model_id="other", **change)  # type: ignore[arg-type]
    assert set(FORM.compatible_columns(other)) == CLOCK
