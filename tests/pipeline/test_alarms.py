"""What is an alarm, and which models can raise it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from stream_gru.config.run_schema import AlarmConfig
from stream_gru.core.errors import ConfigError
from stream_gru.core.prediction import prediction_at
from stream_gru.core.types import OutputSpec, PredictionBatch, Status
from stream_gru.pipeline.alarms import alarms, check_alarm
from tests.support.models import make_bundle
from tests.support.predictions import NAMES, prediction_batches
from tests.support.streams import calibrated


@given(prediction_batches())
def test_an_alarm_is_a_trusted_output_of_a_named_class_or_a_run_of_misses(out: PredictionBatch) -> None:
    """Row by row, from what the row itself says; with one class or several at a time."""
    config = AlarmConfig(classes=[NAMES[0], NAMES[2]], consecutive_misses=5)
    found = alarms(out, config)
    assert found is not None
    assert found.dtype == np.bool_
    for row, alarm in enumerate(found.tolist()):
        label = prediction_at(out, row).label
        of_class = bool({NAMES[0], NAMES[2]} & set(label if isinstance(label, list) else [label]))
        missed = out.consecutive_misses is not None and out.consecutive_misses[row] >= 5
        assert alarm == ((of_class and bool(out.scorable[row])) or missed)


@given(prediction_batches())
def test_nothing_configured_is_no_answer(out: PredictionBatch) -> None:
    """Then outputs do not say whether they are an alarm."""
    assert alarms(out, AlarmConfig()) is None


def test_a_warming_output_is_no_alarm() -> None:
    """What is said while warming up does not count as a class."""
    out = PredictionBatch(
        OutputSpec("m", labels=("good", "bad")),
        ("p",),
        np.zeros(4, np.int32),
        np.arange(4),
        np.array([Status.OK, Status.WARMING, Status.IMPUTED, Status.DEGRADED], np.uint8),
        np.zeros(4, np.uint8),
        np.arange(4),
        np.zeros(4, np.int32),
        probabilities=np.tile(np.array([[0.2, 0.8]], np.float32), (4, 1)),
    )
    config = AlarmConfig(classes=["bad"])
    found = alarms(out, config)
    assert found is not None
    assert found.tolist() == [True, False, True, False]
    quiet = alarms(replace(out, probabilities=np.tile(np.array([[0.8, 0.2]], np.float32), (4, 1))), config)
    assert quiet is not None
    assert not quiet.any()


def test_a_model_that_cannot_raise_the_alarm_is_refused() -> None:
    """Unknown classes are named beside the labels there are; misses need calibrated intervals."""
    both = calibrated(make_bundle(labels=2)).manifest
    assert both.classes is not None
    check_alarm(AlarmConfig(classes=list(both.classes.labels), consecutive_misses=3), both)
    check_alarm(AlarmConfig(), make_bundle(labels=0, horizon=1).manifest)
    with pytest.raises(ConfigError, match=rf"alarm\.classes: .*\({', '.join(both.classes.labels)}\), got 'fire'"):
        check_alarm(AlarmConfig(classes=["fire"]), both)
    with pytest.raises(ConfigError, match=r"it has none.*got 'fire'"):
        check_alarm(AlarmConfig(classes=["fire"]), make_bundle(labels=0).manifest)
    for bundle in (make_bundle(labels=2), make_bundle(labels=2, horizon=0)):
        with pytest.raises(ConfigError, match=r"alarm\.consecutive_misses: expected 0"):
            check_alarm(AlarmConfig(consecutive_misses=1), bundle.manifest)
