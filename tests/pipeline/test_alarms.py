"""Which outputs are alarms, and which models can raise them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from stream_gru.core.errors import ConfigError
from stream_gru.core.prediction import prediction_at
from stream_gru.core.types import NS_PER_S, OutputSpec, PredictionBatch, Status
from stream_gru.pipeline.alarms import AlarmRule
from stream_gru.pipeline.pipeline import Pipeline
from tests.support.batches import CHANNELS, HEAD_NAMES, START_NS, batch, prediction_batches
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated, toy_pipeline

BOTH = calibrated(make_bundle(channels=CHANNELS, labels=2, horizon=1))
RULE = AlarmRule(("label0",), consecutive_misses=2)
NOISE = np.random.default_rng(0).normal(0, 3, (40, CHANNELS)).tolist()


@given(prediction_batches())
def test_an_alarm_is_a_scorable_output_of_a_named_class_or_a_run_of_misses(out: PredictionBatch) -> None:
    """Row by row, from the values of the row; with one class or several at a time."""
    found = AlarmRule((HEAD_NAMES[0], HEAD_NAMES[2]), consecutive_misses=5).alarms(out)
    assert found is not None
    assert found.dtype == np.bool_
    for row, alarm in enumerate(found.tolist()):
        label = prediction_at(out, row).label
        of_class = bool({HEAD_NAMES[0], HEAD_NAMES[2]} & set(label if isinstance(label, list) else [label]))
        missed = out.consecutive_misses is not None and out.consecutive_misses[row] >= 5
        assert alarm == ((of_class and bool(out.scorable[row])) or missed)


@given(prediction_batches())
def test_an_empty_rule_gives_no_alarm_column(out: PredictionBatch) -> None:
    """Then outputs have no alarm value."""
    assert AlarmRule().alarms(out) is None


def test_a_warming_output_is_no_alarm() -> None:
    """The class during warm-up does not count."""
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
    rule = AlarmRule(("bad",))
    found = rule.alarms(out)
    assert found is not None
    assert found.tolist() == [True, False, True, False]
    quiet = rule.alarms(replace(out, probabilities=np.tile(np.array([[0.8, 0.2]], np.float32), (4, 1))))
    assert quiet is not None
    assert not quiet.any()


def test_a_model_that_cannot_raise_the_alarm_is_rejected() -> None:
    """The error lists unknown classes and the labels of the model; misses need calibrated intervals."""
    both = calibrated(make_bundle(labels=2)).manifest
    assert both.classes is not None
    AlarmRule(tuple(both.classes.labels), consecutive_misses=3).check(both)
    AlarmRule().check(make_bundle(labels=0, horizon=1).manifest)
    with pytest.raises(ConfigError, match=rf"alarm\.classes: .*\({', '.join(both.classes.labels)}\), got 'fire'"):
        AlarmRule(("fire",)).check(both)
    with pytest.raises(ConfigError, match=r"it has none.*got 'fire'"):
        AlarmRule(("fire",)).check(make_bundle(labels=0).manifest)
    for bundle in (make_bundle(labels=2), make_bundle(labels=2, horizon=0)):
        with pytest.raises(ConfigError, match=r"alarm\.consecutive_misses: expected 0"):
            AlarmRule(consecutive_misses=1).check(bundle.manifest)


def test_the_pipeline_marks_alarms_itself() -> None:
    """Each output carries the alarm of the rule; without a rule there is no such column, and push gives None."""
    pipeline = toy_pipeline(BOTH, alarm=RULE)
    out = pipeline.process(batch(["a"] * 40, range(40), NOISE))
    expected = RULE.alarms(out)
    assert expected is not None
    assert out.alarm is not None
    assert out.alarm.tolist() == expected.tolist()
    assert 0 < np.count_nonzero(out.alarm) < len(out)
    assert pipeline.push("a", START_NS / NS_PER_S + 40, [0, 0, 0]).alarm is not None
    without = toy_pipeline(BOTH)
    assert without.process(batch(["a"], [0])).alarm is None
    assert without.push("a", START_NS / NS_PER_S + 1, [0, 0, 0]).alarm is None


def test_a_swap_keeps_or_ends_the_rule() -> None:
    """None keeps it, an empty rule ends it; a model that cannot raise its alarms is rejected, and nothing changes."""
    pipeline = toy_pipeline(BOTH, alarm=RULE)
    pipeline.swap(BOTH, pipeline.engine)
    assert pipeline.alarm == RULE
    with pytest.raises(ConfigError, match=r"alarm\.classes"):
        pipeline.swap(make_bundle(channels=CHANNELS, labels=0), "numpy")
    assert (pipeline.alarm, pipeline.manifest) == (RULE, BOTH.manifest)
    pipeline.swap(BOTH, pipeline.engine, alarm=AlarmRule())
    assert pipeline.process(batch(["a"], [0])).alarm is None
    with pytest.raises(ConfigError, match=r"alarm\.classes: .*got 'fire'"):
        Pipeline(BOTH, "numpy", alarm=AlarmRule(("fire",)))
