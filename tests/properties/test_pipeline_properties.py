"""Invariants of the pipeline: batch cuts and other streams change nothing; every sample is counted."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.core.types import SampleBatch
from stream_gru.pipeline.alarms import AlarmRule
from stream_gru.pipeline.pipeline import Pipeline
from tests.support.batches import CHANNELS, hostile_batches, rows_of
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated, toy_pipeline

MODELS = {
    "both heads": calibrated(make_bundle(channels=CHANNELS, labels=2, warm_up=2)),
    "long horizon": calibrated(make_bundle(channels=CHANNELS, horizon=40, targets=1, labels=2)),
    "windowed": calibrated(make_bundle(channels=CHANNELS, labels=2), regime="windowed", window=5),
    "quantiles": calibrated(make_bundle(channels=CHANNELS, labels=2, quantiles=(0.1, 0.5, 0.9))),
    "classes only": calibrated(make_bundle(channels=CHANNELS, horizon=0, labels=2)),
}
models = st.sampled_from(sorted(MODELS))


def states_of(pipeline: Pipeline) -> dict[str, bytes]:
    """The whole state of each stream."""
    return {stream: pipeline.table.row(stream) for stream in pipeline.streams}


def cut_batch(batch: SampleBatch, places: list[int]) -> list[SampleBatch]:
    """The batch cut into parts."""
    edges = [0, *sorted({min(p, len(batch)) for p in places}), len(batch)]
    return [batch.take(slice(a, b)) for a, b in pairwise(edges)]


@settings(max_examples=150)
@given(hostile_batches(), models, st.lists(st.integers(0, 120), max_size=12))
def test_batch_boundaries_change_no_bit(batch: SampleBatch, model: str, places: list[int]) -> None:
    """Wherever a batch is cut, outputs and states are the same, bit for bit."""
    alarm = AlarmRule(("label0",), consecutive_misses=0 if MODELS[model].manifest.forecast is None else 2)
    whole, portions = toy_pipeline(MODELS[model], alarm=alarm), toy_pipeline(MODELS[model], alarm=alarm)
    expected = rows_of([whole.process(batch)])
    assert rows_of([portions.process(part) for part in cut_batch(batch, places)]) == expected
    assert states_of(portions) == states_of(whole)


@settings(max_examples=60)
@given(hostile_batches(), models)
def test_one_sample_at_a_time_equals_one_batch(batch: SampleBatch, model: str) -> None:
    """Live (one sample per batch) equals replay (one batch), bit for bit."""
    whole, live = toy_pipeline(MODELS[model]), toy_pipeline(MODELS[model])
    expected = rows_of([whole.process(batch)])
    assert rows_of([live.process(batch.take(slice(i, i + 1))) for i in range(len(batch))]) == expected
    assert states_of(live) == states_of(whole)


@settings(max_examples=100)
@given(hostile_batches(), models)
def test_streams_do_not_influence_each_other(batch: SampleBatch, model: str) -> None:
    """A stream alone gives the same outputs as among others, bit for bit: no value, NaN included, crosses over."""
    together = toy_pipeline(MODELS[model])
    out = together.process(batch)
    for index, name in enumerate(batch.stream_names):
        alone = toy_pipeline(MODELS[model])
        alone_rows = rows_of([alone.process(batch.take(batch.stream_index == index))])
        assert [row for row in rows_of([out]) if row[0] == name] == alone_rows


@settings(max_examples=100)
@given(hostile_batches(), models)
def test_every_sample_is_applied_or_dropped_for_one_reason(batch: SampleBatch, model: str) -> None:
    """Received = applied + dropped{reason}, and outputs are in the order of arrival."""
    pipeline = toy_pipeline(MODELS[model])
    out = pipeline.process(batch)
    assert batch.received == len(out) + sum(out.dropped.values())
    arrival = {
        (batch.stream_names[s], int(t)): i
        for i, (s, t) in enumerate(zip(batch.stream_index, batch.time_ns, strict=True))
    }
    if batch.episode is None and batch.reset is None and len(arrival) == len(batch):
        order = [arrival[out.stream_names[s], int(t)] for s, t in zip(out.stream_index, out.time_ns, strict=True)]
        assert order == sorted(order)


@settings(max_examples=100)
@given(hostile_batches(), models)
def test_states_are_always_finite(batch: SampleBatch, model: str) -> None:
    """For any input the stored hidden states are finite."""
    pipeline = toy_pipeline(MODELS[model])
    pipeline.process(batch)
    assert np.isfinite(pipeline.table["h"]).all()


@settings(max_examples=60)
@given(hostile_batches(), st.integers(0, 5))
def test_over_the_stream_limit_samples_are_dropped_and_counted(batch: SampleBatch, limit: int) -> None:
    """At most ``max_streams`` streams are kept; samples of others are dropped for that reason."""
    pipeline = toy_pipeline(max_streams=limit)
    out = pipeline.process(replace(batch, rejected=()))
    assert len(pipeline.streams) <= limit
    assert batch.received == len(out) + sum(out.dropped.values())
