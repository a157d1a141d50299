"""The same invariants on the litert engine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.core.types import NS_PER_S, SampleBatch
from stream_gru.pipeline.pipeline import Pipeline
from tests.support.batches import START_NS, rows_of
from tests.support.pipelines import calibrated
from tests.support.reference_models import load_reference, reference_names

pytest.importorskip("ai_edge_litert")


@st.composite
def feeds(draw: st.DrawFn, channels: int) -> SampleBatch:
    """Up to 60 streams in any interleaving, with gaps, repeats, missing values and reset flags."""
    n, streams = draw(st.integers(1, 200)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stream = rng.integers(0, streams, n).astype(np.int32)
    time = np.zeros(n, np.int64)
    for s in range(streams):
        mine = stream == s
        time[mine] = np.cumsum(rng.choice([1, 1, 1, 1, 0, 2, 4, 9], int(mine.sum())))
    values = rng.normal(size=(n, channels)).astype(np.float32)
    values[rng.random((n, channels)) < 0.03] = np.nan
    names = tuple(f"s{i}" for i in range(streams))
    return SampleBatch(names, stream, START_NS + time * NS_PER_S, values, reset=rng.random(n) < 0.02)


@pytest.mark.parametrize("name", reference_names())
@settings(max_examples=15)
@given(data=st.data())
def test_batches_and_interleaving_change_no_bit_on_litert(name: str, data: st.DataObject) -> None:
    """One batch, any portions, one sample at a time, each stream alone: the same outputs and states, bit for bit."""
    bundle = calibrated(load_reference(name).bundle)
    batch = data.draw(feeds(len(bundle.manifest.channels)))
    size = data.draw(st.sampled_from([1, 7, 64]))
    whole, portions = Pipeline(bundle, "litert"), Pipeline(bundle, "litert")
    expected = rows_of([whole.process(batch)])
    parts = [batch.take(slice(first, first + size)) for first in range(0, len(batch), size)]
    assert rows_of([portions.process(part) for part in parts]) == expected
    assert {s: whole.table.row(s) for s in whole.streams} == {s: portions.table.row(s) for s in portions.streams}
    stream = int(batch.stream_index[0])
    alone = rows_of([Pipeline(bundle, "litert").process(batch.take(batch.stream_index == stream))])
    assert [row for row in expected if row[0] == batch.stream_names[stream]] == alone
