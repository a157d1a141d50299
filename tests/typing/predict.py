"""A user's program: load a bundle, push single samples, process batches."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from stream_gru import (
    AlarmRule,
    Bundle,
    DropReason,
    Pipeline,
    Prediction,
    PredictionBatch,
    Rejected,
    ResetReason,
    SampleBatch,
    Status,
    load_bundle,
)

PERIOD_NS = 1_000_000_000
VALUES = {"flow": 180.0, "pressure": 380.0, "current": 5.0, "vibration": 1.5}


def push_one(path: Path) -> Prediction:
    """Push samples with each kind of time and values; return the last prediction."""
    bundle = load_bundle(path)
    assert_type(bundle, Bundle)
    alarm = AlarmRule(classes=("cavitation",), consecutive_misses=3)
    pipeline = Pipeline(bundle, "numpy", interval_level=0.8, interval_adapt_rate=0.5, max_streams=10, alarm=alarm)
    assert_type(pipeline, Pipeline)
    pipeline.push("pump-1", "2026-03-01T00:00:00Z", VALUES)
    pipeline.push("pump-1", datetime(2026, 3, 1, 0, 0, 1, tzinfo=UTC), {**VALUES, "flow": None})
    out = pipeline.push("pump-1", 1_772_323_202.0, [180.0, 380.0, None, 1.5])
    assert_type(out, Prediction)
    assert_type(out.id, str)
    assert_type(out.stream, str)
    assert_type(out.time, str)
    assert_type(out.status, str)
    assert_type(out.model_id, str)
    assert_type(out.forecast, dict[str, list[float]] | None)
    assert_type(out.interval, dict[str, list[tuple[float, float]]] | None)
    assert_type(out.level, float | None)
    assert_type(out.label, str | list[str] | None)
    assert_type(out.probabilities, dict[str, float] | None)
    assert_type(out.reset, str | None)
    assert_type(out.steps, int)
    assert_type(out.alarm, bool | None)
    assert_type(out.dropped, str | None)
    assert_type(pipeline.streams, tuple[str, ...])
    assert_type(pipeline.reset("pump-1"), int)
    return out


def process_batch(path: Path, rows: int) -> PredictionBatch:
    """Process rows of one stream at once."""
    pipeline = Pipeline(load_bundle(path))
    batch = SampleBatch(
        stream_names=("pump-1",),
        stream_index=np.zeros(rows, np.int32),
        time_ns=np.arange(rows, dtype=np.int64) * PERIOD_NS,
        values=np.tile(np.array(list(VALUES.values()), np.float32), (rows, 1)),
    )
    assert_type(batch.received, int)
    assert_type(batch.rejected, tuple[Rejected, ...])
    out = pipeline.process(batch)
    assert_type(out, PredictionBatch)
    assert_type(len(out), int)
    assert_type(out.forecast, NDArray[np.float32] | None)
    assert_type(out.probabilities, NDArray[np.float32] | None)
    assert_type(out.steps_since_reset, NDArray[np.int64])
    assert_type(out.dropped, Mapping[DropReason, int])
    assert_type(out.resets, Mapping[ResetReason, int])
    assert_type(Status(int(out.status[0])), Status)
    return out
