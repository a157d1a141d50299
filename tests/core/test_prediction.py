from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given

from stream_gru.core.prediction import prediction_at, status_text
from stream_gru.core.types import PredictionBatch, Status
from tests.support.batches import prediction_batches
from tests.support.pipelines import toy_pipeline


@given(prediction_batches())
def test_a_record_is_json_and_absent_heads_are_absent_keys(batch: PredictionBatch) -> None:
    """A strict JSON writer accepts every row; absent heads have no key."""
    for row in range(len(batch)):
        record = prediction_at(batch, row).as_dict()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert ("forecast" in record) == (batch.forecast is not None)
        assert ("interval" in record) == ("level" in record) == (batch.lower is not None)
        assert ("alarm" in record) == (batch.alarm is not None)
        assert list(record)[:3] == ["id", "stream", "time"]
        assert record["id"] == f"{record['stream']}/{record['time']}"
        assert ("class" in record) == ("probabilities" in record) == (batch.probabilities is not None)


@given(prediction_batches())
def test_the_label_is_the_most_likely_class_or_all_likely_ones(batch: PredictionBatch) -> None:
    """Exclusive classes give the largest probability, independent ones all from 0.5, non-finite ones none."""
    if batch.probabilities is None:
        return
    for row, numbers in enumerate(batch.probabilities.tolist()):
        label = prediction_at(batch, row).label
        if not all(map(math.isfinite, numbers)):
            assert label is None
        elif batch.spec.exclusive:
            assert label == batch.spec.labels[numbers.index(max(numbers))]
        else:
            assert label == [name for name, p in zip(batch.spec.labels, numbers, strict=True) if p >= 0.5]


def test_a_dropped_sample_has_its_reason() -> None:
    """Also as a JSON record, and without a forecast."""
    pipeline = toy_pipeline()
    pipeline.push("p", 10.0, [1, 2, 3])
    again = pipeline.push("p", 10.0, [1, 2, 3])
    assert (again.status, again.dropped, again.forecast) == ("dropped", "duplicate", None)
    assert again.as_dict()["dropped"] == "duplicate"
    assert "dropped" not in pipeline.push("p", 11.0, [1, 2, 3]).as_dict()


@pytest.mark.parametrize("time", [10**30, float("nan"), "9999-01-01", "soon", True])
def test_an_invalid_time_is_a_value_error(time: float | str) -> None:
    """As `Pipeline.push` documents."""
    with pytest.raises(ValueError, match=r"time|isoformat"):
        toy_pipeline().push("p", time, [1, 2, 3])


def test_numbers_keep_their_value() -> None:
    """A forecast is returned as the float32 it is."""
    pipeline = toy_pipeline()
    forecast = pipeline.push("p", 0.0, [0.1, 0.2, 0.3]).forecast
    assert forecast is not None
    assert all(float(np.float32(number)) == number for numbers in forecast.values() for number in numbers)


def test_the_texts_of_the_status() -> None:
    """Only a warming output has its progress."""
    assert [status_text(status, 3, 60) for status in Status] == ["ok", "warming 3/60", "imputed", "degraded"]
