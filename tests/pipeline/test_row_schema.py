"""The form of stored rows: read again as it was written, and what another model may take of them."""

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


def test_a_form_is_read_as_it_was_written() -> None:
    """Text and back is the same form, and the same text."""
    assert RowSchema.read(FORM.text) == FORM
    assert RowSchema.read(FORM.text).text == FORM.text
    assert FORM.model_id == "test-0"
    assert {"h", "max_event_ns"} <= NAMES


def test_equal_models_have_equal_forms() -> None:
    """And other models other ones."""
    assert model().row_schema.text == FORM.text
    assert len({model(seed).row_schema.text for seed in range(3)}) == 3


_texts = st.text(max_size=20) | st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(json.loads(FORM.text))), inner),
).map(json.dumps)


@given(_texts)
def test_what_is_no_form_is_a_state_error(text: str) -> None:
    """Whatever stands there; what can be read is a form."""
    with suppress(StateError):
        found = RowSchema.read(text)
        assert RowSchema.read(found.text) == found


@pytest.mark.parametrize("key", sorted(json.loads(FORM.text)))
def test_each_key_is_needed(key: str) -> None:
    """One that is missing is an error, not a default."""
    data = json.loads(FORM.text)
    del data[key]
    with pytest.raises(StateError, match=key):
        RowSchema.read(json.dumps(data))


def test_the_same_model_keeps_everything() -> None:
    """All columns that have the same form; one that was changed is not among them."""
    assert set(FORM.compatible_columns(FORM)) == NAMES
    other = replace(FORM, columns=tuple((n, k, (99,) if n == "h" else s) for n, k, s in FORM.columns))
    assert set(FORM.compatible_columns(other)) == NAMES - {"h"}
    assert set(FORM.compatible_columns(replace(FORM, columns=FORM.columns[:2]))) == {
        FORM.columns[0][0],
        FORM.columns[1][0],
    }


def test_another_model_of_the_same_channels_keeps_clock_and_values() -> None:
    """And neither a hidden state nor scores."""
    assert set(FORM.compatible_columns(replace(FORM, model_id="other"))) == CLOCK | VALUES


@pytest.mark.parametrize("change", [{"channels": ("c0", "c2", "c1")}, {"period_s": 2.0}])
def test_a_model_of_other_channels_or_period_keeps_the_clock(change: dict[str, object]) -> None:
    """Channels in another order are others."""
    other = replace(FORM, model_id="other", **change)  # type: ignore[arg-type]
    assert set(FORM.compatible_columns(other)) == CLOCK
