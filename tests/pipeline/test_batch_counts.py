"""Counts of a batch: received = applied + dropped, and classes against labels."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings

from stream_gru.core.prediction import BatchCounts, prediction_at, scored_class
from stream_gru.core.types import SampleBatch
from tests.support.batches import CHANNELS, batch, hostile_batches
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated, toy_pipeline

NAMES = ("label0", "label1")


@settings(max_examples=60)
@given(hostile_batches())
def test_counts_are_those_of_the_outputs_one_by_one(samples: SampleBatch) -> None:
    """Applied, dropped, classes, labelled and correct outputs, counted again row by row."""
    out = toy_pipeline().process(samples)
    counts = BatchCounts.of(samples.received, out)
    assert counts.received == samples.received == counts.applied + sum(counts.dropped.values())
    assert out.label is not None
    rows = [prediction_at(out, row) for row in range(len(out))]
    assert Counter(row.label for row in rows if row.label is not None) == Counter(
        dict(zip(NAMES, counts.by_class.tolist(), strict=True))
    )
    known = [row for row in range(len(out)) if out.label[row] >= 0 and out.scorable[row]]
    assert counts.labelled == len(known)
    assert counts.correct == sum(rows[row].label == NAMES[out.label[row]] for row in known)
    assert counts.max_event_ns == (int(out.time_ns.max()) if len(out) else None)


def test_warming_and_degraded_outputs_are_not_labelled() -> None:
    """They are counted by class, as the metric does, and never for the accuracy."""
    bundle = calibrated(make_bundle(channels=CHANNELS, labels=2, warm_up=2))
    out = toy_pipeline(bundle).process(batch(["p"] * 4, range(4), label=np.zeros(4, np.int32), labels=("label0",)))
    assert scored_class(out).tolist() == [-1, -1, 0, 0]
    assert BatchCounts.of(4, out).labelled == 2
    assert BatchCounts.of(4, out).by_class.sum() == 4


def test_a_model_without_classes_has_no_class_counts() -> None:
    """No labels, no counts; samples are still counted."""
    out = toy_pipeline(calibrated(make_bundle(channels=CHANNELS, labels=0))).process(batch(["p"], [0]))
    counts = BatchCounts.of(3, out)
    assert (counts.received, counts.applied, counts.by_class.tolist()) == (3, 1, [])
    assert (counts.labelled, counts.correct, counts.alarms) == (0, 0, 0)
    assert scored_class(out).tolist() == [-1]
