"""The summary of a run."""

from __future__ import annotations

import json

import numpy as np

from stream_gru.core.prediction import BatchCounts
from stream_gru.core.types import NS_PER_S, SampleBatch
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.run_summary import RunSummary, summary_lines
from tests.support.models import make_bundle


def test_a_target_without_truths_has_no_error() -> None:
    """A channel that was never measured again is null in the summary and "unknown" in its lines, without a warning."""
    pipeline = Pipeline(make_bundle(), "numpy")
    values = np.zeros((4, 3), np.float32)
    values[1:, 1] = np.nan  # held from the second sample on
    time_ns = (np.arange(4) + 1_700_000_000) * NS_PER_S
    batch = SampleBatch(("s",), np.zeros(4, np.int32), time_ns, values)
    summary = RunSummary()
    summary.add(BatchCounts.of(batch.received, pipeline.process(batch)), 0.1, 1)
    result = summary.as_dict(pipeline.scores(), 0.9)
    forecast = json.loads(json.dumps(result, allow_nan=False))["forecast"]
    assert forecast["mae"][0] is None
    assert forecast["mae"][1] > 0
    lines = "\n".join(summary_lines(result, pipeline.spec.targets))
    assert "c1: mean absolute error unknown, skill" in lines
