"""What recordings must offer before training: labels, runs, runs as long as windows."""

from __future__ import annotations

import numpy as np
import pytest

from stream_gru.config import ModelConfig, TrainingConfig
from stream_gru.config.train_schema import ClassesConfig
from stream_gru.core.errors import DataError
from stream_gru.training.data_checks import check_labels, check_runs
from stream_gru.training.segments import Run

LAST = TrainingConfig(regime="windowed", window=10, window_loss="last")


def run_of(size: int) -> Run:
    """A run of zeros."""
    return Run(
        "s", np.arange(size), np.zeros((size, 1), np.float32), np.ones((size, 1), np.bool_), np.zeros(size, np.int32)
    )


def test_a_head_for_two_labels_meets_two() -> None:
    """Three labels, found in the recordings, are told before anything is trained."""
    model = ModelConfig(classes=ClassesConfig(activation="logistic"))
    check_labels(model, ["a", "b"])
    with pytest.raises(DataError, match=r'"logistic": expected two labels, got 3 \(a, b, c\)'):
        check_labels(model, ["a", "b", "c"])


def test_a_training_part_without_a_sample_is_told() -> None:
    """Every sample was dropped: the error says where to look."""
    with pytest.raises(DataError, match=r"every sample was dropped; see \[input\]"):
        check_runs(TrainingConfig(), [], print)


def test_runs_that_never_fill_a_window_are_told() -> None:
    """All of them: an error, as no answer would be trusted; some: how many; none, or other regimes: nothing."""
    said: list[str] = []
    with pytest.raises(DataError, match=r"no run between two resets is that long, the longest has 9 samples"):
        check_runs(LAST, [run_of(4), run_of(9)], said.append)
    assert said == []
    check_runs(LAST, [run_of(4), run_of(10)], said.append)
    assert len(said) == 1
    assert said[0].startswith("1 of 2 runs are shorter than the window of 10 steps")
    check_runs(LAST, [run_of(10)], said.append)
    check_runs(TrainingConfig(window=10), [run_of(4)], said.append)
    assert len(said) == 1
