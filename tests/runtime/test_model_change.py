"""Stored streams under another model: what they keep, or that none is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_gru.core.errors import IncompatibleStateError
from stream_gru.core.types import DropReason, ResetReason
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.eviction import StatePolicy
from stream_gru.runtime.checkpoint.store import Store
from tests.support.batches import CHANNELS, batch, rows_of
from tests.support.stores import checkpointer_of, feed, model, opened, store_content


def test_streams_of_another_model_are_reset_and_keep_their_clock(tmp_path: Path) -> None:
    """A sample that was late is still late; the first step reports why the state was reset."""
    checkpointer = checkpointer_of(tmp_path)
    feed(checkpointer, "a", 1, 2, 3)
    checkpointer.commit({}, {})
    checkpointer.close()
    other = model(seed=1, units=5)
    checkpointer = checkpointer_of(tmp_path, other)
    out = other.process(batch(["a", "a", "a"], [2, 3, 4], [[1.0] * CHANNELS] * 3))
    assert out.dropped == {DropReason.LATE: 1, DropReason.DUPLICATE: 1}
    assert out.resets == {ResetReason.MODEL_CHANGED: 1}
    fresh = model(seed=1, units=5)
    same = fresh.process(batch(["a"], [4], [[1.0] * CHANNELS]))
    assert rows_of([out])[0][4:] == rows_of([same])[0][4:]
    assert checkpointer.counts.damaged == 0


def test_streams_of_another_model_are_rejected_on_request(tmp_path: Path) -> None:
    """The message names both models and what to do; the store is unchanged."""
    checkpointer = checkpointer_of(tmp_path)
    feed(checkpointer, "a", 1)
    checkpointer.commit({}, {})
    checkpointer.close()
    before = store_content(tmp_path)["stream"]
    refusing = Checkpointer(model(seed=1), Store(tmp_path), policy=StatePolicy(reject_other_model=True))
    with pytest.raises(
        IncompatibleStateError,
        match=r"expected states of model test-1, .*, got states of model test-0; .*on_model_change",
    ):
        refusing.recover({}, {})
    refusing.close()
    assert store_content(tmp_path)["stream"] == before
    checkpointer_of(tmp_path, model(), reject_other_model=True)


def test_a_model_with_other_channels_keeps_only_the_clock(tmp_path: Path) -> None:
    """Values of other channels do not apply to it."""
    checkpointer = checkpointer_of(tmp_path)
    feed(checkpointer, "a", 1, 2)
    checkpointer.commit({}, {})
    checkpointer.close()
    other = model(seed=1, channels=CHANNELS - 1)
    checkpointer_of(tmp_path, other)
    late = batch(["a", "a"], [2, 3], [[1.0] * (CHANNELS - 1)] * 2)
    out = other.process(late)
    assert (out.dropped, out.resets) == ({DropReason.DUPLICATE: 1}, {ResetReason.MODEL_CHANGED: 1})


def test_only_the_model_of_the_last_run_is_compared(tmp_path: Path) -> None:
    """A stream evicted under an older model does not prevent a start: it is reset when it is loaded."""
    checkpointer = checkpointer_of(tmp_path, max_streams=1, evict=True)
    for name in "ab":
        feed(checkpointer, name, 1, 2)
        checkpointer.commit({}, {})
    checkpointer.close()
    checkpointer = checkpointer_of(tmp_path, model(seed=1), max_streams=1, evict=True)
    checkpointer.commit({}, {})
    checkpointer.close()
    other = model(seed=1)
    checkpointer = checkpointer_of(tmp_path, other, max_streams=1, evict=True, reject_other_model=True)
    out = other.process(checkpointer.cache.load_streams(batch(["a"], [3])))
    assert out.resets == {ResetReason.MODEL_CHANGED: 1}
    checkpointer.close()
    refusing = Checkpointer(model(), Store(tmp_path), policy=StatePolicy(evict=True, reject_other_model=True))
    with pytest.raises(
        IncompatibleStateError, match=r"expected states of model test-0, .*, got states of model test-1"
    ):
        refusing.recover({}, {})
    refusing.close()


def test_without_a_last_model_the_rows_are_compared(tmp_path: Path) -> None:
    """They were imported before the first start."""
    with opened(tmp_path) as store:
        store.write(Commit(schema="rubbish", streams=[("b", b"")]))
        store.write(Commit(schema=model().row_schema.text, streams=[("a", b"")]))
    refusing = Checkpointer(model(seed=1), Store(tmp_path), policy=StatePolicy(reject_other_model=True))
    with pytest.raises(
        IncompatibleStateError, match=r"expected states of model test-1, .*, got states of model test-0"
    ):
        refusing.recover({}, {})
    refusing.close()
    checkpointer_of(tmp_path, reject_other_model=True)


def test_the_model_is_written_when_it_changes(tmp_path: Path) -> None:
    """With the first rows of a run, and not with each commit."""
    checkpointer = checkpointer_of(tmp_path)
    written = list[dict[str, str]]()
    for seconds in (1, 2):
        feed(checkpointer, "a", seconds)
        written.append(dict(checkpointer._collect({}, {}, {}).texts))
        checkpointer.commit({}, {})
    assert written == [{"model_id": "test-0"}, {}]
