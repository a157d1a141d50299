"""Stored streams under another model: what of them goes on, or that none of them may."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_gru.errors import IncompatibleStateError
from stream_gru.keeping.keeper import Keeper, Policy
from stream_gru.store.store import Store
from stream_gru.types import DropReason, ResetReason
from tests.support.kept import feed, keeper_of, model
from tests.support.stores import content
from tests.support.streams import CHANNELS, batch, rows_of


def test_streams_of_another_model_are_reset_and_keep_their_clock(tmp_path: Path) -> None:
    """What is late under the old model is late under the new one; the first step says why the state is new."""
    keeper = keeper_of(tmp_path)
    feed(keeper, "a", 1, 2, 3)
    keeper.commit({}, {})
    keeper.close()
    other = model(seed=1, units=5)
    keeper = keeper_of(tmp_path, other)
    out = other.process(batch(["a", "a", "a"], [2, 3, 4], [[1.0] * CHANNELS] * 3))
    assert out.dropped == {DropReason.LATE: 1, DropReason.DUPLICATE: 1}
    assert out.resets == {ResetReason.MODEL_CHANGED: 1}
    fresh = model(seed=1, units=5)
    same = fresh.process(batch(["a"], [4], [[1.0] * CHANNELS]))
    assert rows_of([out])[0][4:] == rows_of([same])[0][4:]
    assert keeper.counts.damaged == 0


def test_streams_of_another_model_are_refused_where_that_is_wanted(tmp_path: Path) -> None:
    """The message names both models and what to do; the store is as it was."""
    keeper = keeper_of(tmp_path)
    feed(keeper, "a", 1)
    keeper.commit({}, {})
    keeper.close()
    before = content(tmp_path)["stream"]
    refusing = Keeper(model(seed=1), Store(tmp_path), policy=Policy(refuse_other_model=True))
    with pytest.raises(IncompatibleStateError, match=r"of model test-0, the bundle is test-1; .*when_model_changes"):
        refusing.recover({}, {})
    refusing.close()
    assert content(tmp_path)["stream"] == before
    keeper_of(tmp_path, model(), refuse_other_model=True)


def test_a_model_with_other_channels_takes_the_clock_alone(tmp_path: Path) -> None:
    """Values of other channels mean nothing to it."""
    keeper = keeper_of(tmp_path)
    feed(keeper, "a", 1, 2)
    keeper.commit({}, {})
    keeper.close()
    other = model(seed=1, channels=CHANNELS - 1)
    keeper_of(tmp_path, other)
    late = batch(["a", "a"], [2, 3], [[1.0] * (CHANNELS - 1)] * 2)
    out = other.process(late)
    assert (out.dropped, out.resets) == ({DropReason.DUPLICATE: 1}, {ResetReason.MODEL_CHANGED: 1})
