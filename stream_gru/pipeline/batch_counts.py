"""Counts of one processed batch, computed once for the run summary, the metrics and the evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stream_gru.core.types import I64, DropReason, PredictionBatch, ResetReason


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """What became of the samples of one batch: received = applied + dropped.

    ``by_class``    (L,) int64 outputs by predicted class, those without finite probabilities left out; L = 0 without a
                    class head
    ``labelled``    scorable outputs whose true class is known; ``correct`` of them had it as predicted class
    ``imputed``     inserted steps and held channel values
    ``max_event_ns``  largest event time of an output, None without outputs
    ``alarms``      outputs that are alarms, 0 without an alarm rule
    """

    received: int
    applied: int
    dropped: Mapping[DropReason, int]
    resets: Mapping[ResetReason, int]
    imputed: int
    alarms: int
    max_event_ns: int | None
    by_class: I64
    labelled: int
    correct: int

    @staticmethod
    def of(received: int, out: PredictionBatch) -> BatchCounts:
        """Count the outputs of a batch of ``received`` samples, rejected ones included."""
        by_class, labelled, correct = np.zeros(len(out.spec.labels), np.int64), 0, 0
        if out.probabilities is not None and len(out):
            predicted = out.predicted_class
            by_class = np.bincount(predicted[predicted >= 0], minlength=len(out.spec.labels))
            if out.label is not None:
                true_class = scored_class(out)
                labelled = int(np.count_nonzero(true_class >= 0))
                correct = int(np.count_nonzero((true_class == predicted) & (true_class >= 0)))
        return BatchCounts(
            received=received,
            applied=len(out),
            dropped=out.dropped,
            resets=out.resets,
            imputed=int(out.imputed.sum()),
            alarms=0 if out.alarm is None else int(np.count_nonzero(out.alarm)),
            max_event_ns=int(out.time_ns.max()) if len(out) else None,
            by_class=by_class,
            labelled=labelled,
            correct=correct,
        )


def scored_class(out: PredictionBatch) -> I64:
    """True class of each output that counts for the accuracy, (M,) int64; -1 where unknown, warming or degraded."""
    if out.label is None:
        return np.full(len(out), -1, np.int64)
    return np.where(out.scorable, out.label, -1).astype(np.int64)
