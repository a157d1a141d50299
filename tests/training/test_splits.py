"""Recordings are split without leakage and cut at their resets."""

from __future__ import annotations

import numpy as np
import pytest

from stream_gru.config import ClassesConfig, ConditioningConfig, ModelConfig, SplitConfig, TrainingConfig
from stream_gru.core.errors import DataError
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import SampleBatch
from stream_gru.pipeline.conditioning.spec import ConditioningSpec
from stream_gru.training.splits import Segment, check_label_count, check_segments, class_labels, segments_of, split
from tests.support.batches import CHANNELS, batch

RULES = ConditioningSpec.build(ConditioningConfig(), 1.0, [(None, None, 0)] * CHANNELS, [], window=0)


def test_a_split_by_time_cuts_each_stream_at_its_own_share() -> None:
    """Shares are of a stream's own span; the parts follow each other in time and hold every row once."""
    samples = batch(["a"] * 100 + ["b"] * 50, [*range(100), *range(1000, 1050)])
    parts = split(samples, SplitConfig(validation=0.2, test=0.2))
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [90, 30, 30]
    for stream in (0, 1):
        ends = [part.time_ns[part.stream_index == stream] for part in (parts.train, parts.validation, parts.test)]
        assert ends[0].max() < ends[1].min() <= ends[1].max() < ends[2].min()


def test_a_split_by_instants_obeys_them() -> None:
    """validation_from, test_from and until are the first instants that no longer belong to the part before."""
    samples = batch(["a"] * 100, list(range(100)))
    instants = format_iso(samples.time_ns[[60, 80, 95]])
    config = SplitConfig(validation_from=instants[0], test_from=instants[1], until=instants[2])
    parts = split(samples, config)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [60, 20, 15]


def test_a_split_by_stream_goes_by_name() -> None:
    """Patterns choose whole streams; all others train."""
    samples = batch(["p1", "p2", "q1", "q2"] * 3, [t for t in range(3) for _ in range(4)])
    parts = split(samples, SplitConfig(by="stream", validation_streams=["p2"], test_streams=["q*"]))
    each = (parts.train, parts.validation, parts.test)
    names = [sorted({part.stream_names[i] for i in part.stream_index}) for part in each]
    assert names == [["p1"], ["p2"], ["q1", "q2"]]


def test_an_empty_part_is_an_error() -> None:
    """A pattern that matches no stream is an error that names the part."""
    with pytest.raises(DataError, match="no row in the validation part"):
        split(batch(["a", "c"], [0, 1]), SplitConfig(by="stream", validation_streams=["b"], test_streams=["a"]))


def test_parts_are_conditioned_separately() -> None:
    """No value of the training part fills a gap in the test part: a value missing at its start is dropped there."""
    values = [[1.0, 2.0, 3.0]] * 10
    values[8] = [float("nan"), 2.0, 3.0]
    samples = batch(["a"] * 10, list(range(10)), values)
    parts = split(samples, SplitConfig(validation=0.1, test=0.2))
    (segment,) = segments_of(parts.test, RULES, [])
    assert len(parts.test) == 2
    assert len(segment) == 1


def test_segments_end_at_resets_and_know_what_was_filled() -> None:
    """A long gap ends a segment; a short one is filled inside it, unlabelled and not observed."""
    samples = batch(["a"] * 5, [0, 1, 4, 60, 61], label=np.array([0, 0, 1, 1, -1], np.int32), labels=("idle", "normal"))
    first, second = segments_of(samples, RULES, ["idle", "normal"])
    assert first.label.tolist() == [0, 0, -1, -1, 1]
    assert first.observed[:, 0].tolist() == [True, True, False, False, True]
    assert second.label.tolist() == [1, -1]


def test_each_segment_is_of_its_own_stream_in_order() -> None:
    """Segments of a stream are adjacent and have its name, in whatever order the samples arrive."""
    samples = batch(["b", "a"] * 4, [0, 0, 1, 1, 60, 60, 61, 61])
    assert [(segment.stream, len(segment)) for segment in segments_of(samples, RULES, [])] == [
        ("b", 2),
        ("b", 2),
        ("a", 2),
        ("a", 2),
    ]


def test_a_part_of_dropped_samples_has_no_segments() -> None:
    """When every sample is dropped there is no segment and no error here."""
    assert segments_of(batch(["a"] * 3, [0, 1, 2], [[float("nan")] * 3] * 3), RULES, []) == []


def labelled() -> SampleBatch:
    """Four rows of three labels, one without."""
    return batch(["a"] * 4, [0, 1, 2, 3], label=np.array([0, 1, 2, -1], np.int32), labels=("walk", "sit", "turn"))


def test_labels_come_from_the_recordings_or_the_configuration() -> None:
    """Without labels in the configuration, all labels that occur are used, except the ignored ones, sorted."""
    assert class_labels(labelled(), [], ["turn"]) == ["sit", "walk"]
    assert class_labels(labelled(), ["walk", "sit"], []) == ["walk", "sit"]
    assert labelled().label_codes(["walk", "sit"]).tolist() == [0, 1, -1, -1]


def test_a_label_that_never_occurs_is_an_error() -> None:
    """A misspelt label is not silently accepted."""
    with pytest.raises(DataError, match="expected labels of the training part \\(sit, turn, walk\\), got 'run'"):
        class_labels(labelled(), ["walk", "run"], [])


LAST = TrainingConfig(regime="windowed", window=10, window_loss="last")


def labelled_segment(size: int) -> Segment:
    """A segment of zeros."""
    return Segment(
        "s", np.arange(size), np.zeros((size, 1), np.float32), np.ones((size, 1), np.bool_), np.zeros(size, np.int32)
    )


def test_a_logistic_head_needs_two_labels() -> None:
    """Three labels in the recordings are an error before training begins."""
    model = ModelConfig(classes=ClassesConfig(activation="logistic"))
    check_label_count(model, ["a", "b"])
    with pytest.raises(DataError, match=r'"logistic": expected two labels, got 3 \(a, b, c\)'):
        check_label_count(model, ["a", "b", "c"])


def test_a_training_part_without_a_sample_is_an_error() -> None:
    """When every sample was dropped, the error names the tables to check."""
    with pytest.raises(DataError, match=r"every sample was dropped; see \[input\]"):
        check_segments(TrainingConfig(), [], print)


def test_segments_shorter_than_a_window_are_reported() -> None:
    """All of them: an error, as no prediction would be valid; some: their number; none, or other regimes: nothing."""
    lines: list[str] = []
    with pytest.raises(DataError, match=r"no segment between two resets is that long, the longest has 9 samples"):
        check_segments(LAST, [labelled_segment(4), labelled_segment(9)], lines.append)
    assert lines == []
    check_segments(LAST, [labelled_segment(4), labelled_segment(10)], lines.append)
    assert len(lines) == 1
    assert lines[0].startswith("1 of 2 segments are shorter than the window of 10 steps")
    check_segments(LAST, [labelled_segment(10)], lines.append)
    check_segments(TrainingConfig(window=10), [labelled_segment(4)], lines.append)
    assert len(lines) == 1
