"""Outputs as plain records: one output, as `Pipeline.push` returns it, and the counts of one batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import F32, I64, DropReason, OutputSpec, PredictionBatch, ResetReason, SampleBatch, Status


@dataclass(frozen=True, slots=True)
class Prediction:
    """The output for one sample; heads that the model does not have are None.

    ``forecast``       target -> H values, one for each step of the horizon, engineering units
    ``interval``       target -> H pairs (lower, upper) that cover the true value with probability ``level``
    ``label``          the most likely class; for independent (sigmoid) classes all with probability 0.5 or more
    ``probabilities``  class -> probability
    ``status``         ``ok``, ``warming k/n``, ``imputed`` or ``degraded``
    ``reset``          why the state was reset before this sample, or None
    ``steps``          steps since the reset, this one included
    ``alarm``          whether this is an alarm; None without an alarm rule
    ``dropped``        why the sample was not applied (all other fields are empty), or None
    """

    stream: str
    time: str
    status: str
    model_id: str
    forecast: dict[str, list[float]] | None = None
    interval: dict[str, list[tuple[float, float]]] | None = None
    level: float | None = None
    label: str | list[str] | None = None
    probabilities: dict[str, float] | None = None
    reset: str | None = None
    steps: int = 0
    alarm: bool | None = None
    dropped: str | None = None

    @property
    def id(self) -> str:
        """Identifies the output across restarts and redelivery: ``<stream>/<time>``."""
        return f"{self.stream}/{self.time}"

    @staticmethod
    def of_dropped(batch: SampleBatch, out: PredictionBatch) -> Prediction:
        """Return the record of a single sample that was not applied."""
        reason = next(iter(out.dropped))
        return Prediction(
            stream=batch.stream_names[0],
            time=format_iso(batch.time_ns)[0],
            status="dropped",
            model_id=out.spec.model_id,
            dropped=reason.text,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the record as written to JSON: absent heads are absent keys, the label is the key ``class``.

        NaN and infinity become None; ``dropped`` is present only for a sample that was not applied.
        """
        heads: dict[str, Any] = {}
        if self.forecast is not None:
            heads["forecast"] = self.forecast
        if self.interval is not None:
            heads |= {"interval": self.interval, "level": self.level}
        if self.probabilities is not None:
            heads |= {"class": self.label, "probabilities": self.probabilities}
        if self.alarm is not None:
            heads["alarm"] = self.alarm
        tail = {"status": self.status, "reset": self.reset, "steps": self.steps, "model_id": self.model_id}
        if self.dropped is not None:
            tail["dropped"] = self.dropped
        return {"id": self.id, "stream": self.stream, "time": self.time, **_plain(heads), **tail}


def _plain(value: Any) -> Any:
    """Return the value in JSON's types: lists for tuples, None for NaN and infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def prediction_at(batch: PredictionBatch, row: int) -> Prediction:
    """Return one row of a batch as a record."""
    spec = batch.spec
    reset = ResetReason(int(batch.reset[row]))
    interval = None
    if batch.lower is not None and batch.upper is not None:
        pairs = np.stack((batch.lower[row], batch.upper[row]), axis=-1)
        interval = {t: [(float(a), float(b)) for a, b in pairs[d]] for d, t in enumerate(spec.targets)}
    return Prediction(
        stream=batch.stream_names[batch.stream_index[row]],
        time=format_iso(batch.time_ns[row : row + 1])[0],
        status=status_text(Status(int(batch.status[row])), int(batch.steps_since_reset[row]), spec.warm_up),
        model_id=spec.model_id,
        forecast=None if batch.forecast is None else dict(zip(spec.targets, batch.forecast[row].tolist(), strict=True)),
        interval=interval,
        level=None if interval is None else spec.level,
        label=None if batch.probabilities is None else label_of(spec, batch.probabilities[row]),
        probabilities=None
        if batch.probabilities is None
        else dict(zip(spec.labels, batch.probabilities[row].tolist(), strict=True)),
        reset=None if reset is ResetReason.NONE else reset.text,
        steps=int(batch.steps_since_reset[row]),
        alarm=None if batch.alarm is None else bool(batch.alarm[row]),
    )


def label_of(spec: OutputSpec, probabilities: F32) -> str | list[str] | None:
    """Return the class of a row of probabilities, (L,) float32; None if any of them is not finite."""
    if not np.isfinite(probabilities).all():
        return None
    if spec.exclusive:
        return spec.labels[int(probabilities.argmax())]
    return [label for label, p in zip(spec.labels, probabilities, strict=True) if p >= 0.5]


def statuses(batch: PredictionBatch) -> list[bytes]:
    """Return the status text of each row, as bytes."""
    pairs = zip(batch.status.tolist(), batch.steps_since_reset.tolist(), strict=True)
    warm_up, warming = batch.spec.warm_up, int(Status.WARMING)
    return [_status(code, steps if code == warming else 0, warm_up) for code, steps in pairs]


@lru_cache(maxsize=8192)
def _status(code: int, steps: int, warm_up: int) -> bytes:
    return status_text(Status(code), steps, warm_up).encode()


def status_text(status: Status, steps: int, warm_up: int) -> str:
    """Return ``ok``, ``warming 3/60``, ``imputed`` or ``degraded``."""
    return f"warming {steps}/{warm_up}" if status is Status.WARMING else status.text


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
