"""What recordings must offer before anything is trained on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stream_gru.config import ModelConfig, TrainingConfig
from stream_gru.core.errors import DataError
from stream_gru.training.segments import Run


def check_labels(model: ModelConfig, labels: Sequence[str]) -> None:
    """Raise DataError where a head for a choice of two meets another number of labels."""
    if model.classes is not None and model.classes.activation == "logistic" and len(labels) != 2:
        raise DataError(
            f'model.classes.activation "logistic": expected two labels, got {len(labels)} ({", ".join(labels)});'
            ' use "softmax", or name two in model.classes.labels'
        )


def check_runs(training: TrainingConfig, runs: Sequence[Run], say: Callable[[str], None]) -> None:
    """Raise DataError where the training part has no run, or none that is as long as its answers need.

    A model that learns from the last step of its windows answers at that step alone; a shorter run never gets there,
    and how many there are is said.
    """
    if not runs:
        raise DataError("training part: every sample was dropped; see [input], the ranges of [[channel]] and [split]")
    if training.regime != "windowed" or training.window_loss != "last":
        return
    short = sum(len(run) < training.window for run in runs)
    if short == len(runs):
        raise DataError(
            f"training.window (now {training.window}): no run between two resets is that long, the longest has"
            f" {max(map(len, runs))} samples, so no answer would ever be trusted; choose a smaller window, or"
            ' window_loss = "every"'
        )
    if short:
        say(
            f"{short:,} of {len(runs):,} runs are shorter than the window of {training.window} steps: they are learnt"
            ' from, but get no trusted answer; window_loss = "every" would give one'
        )
