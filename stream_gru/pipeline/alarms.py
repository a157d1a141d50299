"""Alarm rule: which outputs need an operator's attention.

An output is an alarm when its class is one of the rule's classes, or when the last N truths of a target, this one
included, all lay outside the interval forecast for them one step ahead.

Decision: the class counts only where the output is scorable.  A model's class during warm-up, after every restart of a
device, would raise false alarms.  Misses need no such condition: only scorable forecasts are scored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_gru.config.run_schema import AlarmConfig
from stream_gru.core.errors import ConfigError
from stream_gru.core.types import F32, Mask, PredictionBatch
from stream_gru.model.manifest import Manifest


@dataclass(frozen=True, slots=True)
class AlarmRule:
    """When an output is an alarm; without classes and misses the rule is empty.

    ``classes``: labels of the model; ``consecutive_misses``: length of a run of truths outside their interval, 0: off.
    """

    classes: tuple[str, ...] = ()
    consecutive_misses: int = 0

    @staticmethod
    def of(config: AlarmConfig) -> AlarmRule:
        """The rule of the configuration table ``[alarm]``."""
        return AlarmRule(tuple(config.classes), config.consecutive_misses)

    def __bool__(self) -> bool:
        return bool(self.classes or self.consecutive_misses)

    def check(self, manifest: Manifest) -> None:
        """Raise ConfigError when the model cannot raise these alarms: unknown classes, misses without intervals."""
        labels = [] if manifest.classes is None else list(manifest.classes.labels)
        problems = [
            f"alarm.classes: expected labels of the model ({', '.join(labels) or 'it has none'}), got {name!r}"
            for name in self.classes
            if name not in labels
        ]
        if self.consecutive_misses and (manifest.forecast is None or manifest.calibration is None):
            problems.append(
                f"alarm.consecutive_misses: expected 0 for a model without calibrated intervals,"
                f" got {self.consecutive_misses}"
            )
        if problems:
            raise ConfigError(*problems)

    def alarms(self, out: PredictionBatch) -> Mask | None:
        """Which of the M outputs are alarms, (M,) bool; None for an empty rule."""
        if not self:
            return None
        found: Mask = np.zeros(len(out), np.bool_)
        if self.classes and out.probabilities is not None:
            found[self._of_class(out, out.probabilities) & out.scorable] = True
        if self.consecutive_misses and out.consecutive_misses is not None:
            found[out.consecutive_misses >= self.consecutive_misses] = True
        return found

    def _of_class(self, out: PredictionBatch, probabilities: F32) -> Mask:
        """Rows whose class is in the rule: the most likely one, or of independent classes any of at least 0.5."""
        wanted = np.isin(out.spec.labels, self.classes)
        predicted = out.predicted_class
        if out.spec.exclusive:
            return (predicted >= 0) & wanted[predicted]
        return (predicted >= 0) & np.logical_or.reduce(probabilities[:, wanted] >= 0.5, axis=1)
