"""Alarms: which outputs somebody should look at.

An output is an alarm when its class is one of those that were named, or when the last so many truths of a target, this
one included, all lay outside the interval that had been forecast for them.

Decision: a class counts only where the output is trusted: what a model says while it warms up, after each restart of a
device, would ring for nothing.  Misses need no such rule, as only trusted forecasts are scored.
"""

from __future__ import annotations

import numpy as np

from stream_gru.config.run_schema import AlarmConfig
from stream_gru.core.errors import ConfigError
from stream_gru.core.types import F32, Mask, PredictionBatch
from stream_gru.model.manifest import Manifest


def alarms(out: PredictionBatch, config: AlarmConfig) -> Mask | None:
    """Which rows are an alarm, (M,) bool; None when nothing is configured to be one."""
    if not config.classes and not config.consecutive_misses:
        return None
    found: Mask = np.zeros(len(out), np.bool_)
    if config.classes and out.probabilities is not None:
        found[_of_class(out, out.probabilities, config.classes) & out.scorable] = True
    if config.consecutive_misses and out.consecutive_misses is not None:
        found[out.consecutive_misses >= config.consecutive_misses] = True
    return found


def _of_class(out: PredictionBatch, probabilities: F32, classes: list[str]) -> Mask:
    """Rows whose class is one of ``classes``: the most likely one, or of independent classes any that is likely."""
    wanted = np.isin(out.spec.labels, classes)
    best = out.predicted_class
    if out.spec.exclusive:
        return (best >= 0) & wanted[best]
    return (best >= 0) & np.logical_or.reduce(probabilities[:, wanted] >= 0.5, axis=1)


def check_alarm(config: AlarmConfig, manifest: Manifest) -> None:
    """Make sure that a model can raise the alarms that are configured.  Raises ConfigError."""
    labels = [] if manifest.classes is None else list(manifest.classes.labels)
    problems = [
        f"alarm.classes: expected labels of the model ({', '.join(labels) or 'it has none'}), got {name!r}"
        for name in config.classes
        if name not in labels
    ]
    if config.consecutive_misses and (manifest.forecast is None or manifest.calibration is None):
        problems.append(
            "alarm.consecutive_misses: expected 0, as the model forecasts no intervals that a truth could miss"
        )
    if problems:
        raise ConfigError(*problems)
