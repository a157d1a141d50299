"""Recordings to training material: split into parts, condition, cut into runs.

The same conditioning serves as for live data.  Parts are split before they are conditioned, each with a state of its
own, so that nothing - no held value, no filled gap, no forecast truth - reaches across a cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from stream_gru.config import SplitConfig
from stream_gru.core.errors import DataError
from stream_gru.core.timestamps import LIMIT_NS, format_iso, iso_to_ns
from stream_gru.core.types import I32, I64, SampleBatch
from stream_gru.pipeline.conditioning.condition import condition
from stream_gru.pipeline.conditioning.gap_filling import Steps
from stream_gru.pipeline.conditioning.spec import ConditioningSpec, conditioning_columns
from stream_gru.pipeline.state_table import StateTable
from stream_gru.training.segments import Run


@dataclass(frozen=True)
class Parts:
    """The three parts of all recordings, rows in order of arrival."""

    train: SampleBatch
    validation: SampleBatch
    test: SampleBatch


def split(batch: SampleBatch, config: SplitConfig) -> Parts:
    """Divide the rows.  Raises DataError when a part is empty."""
    part = _by_stream(batch, config) if config.by == "stream" else _by_time(batch, config)
    for number, name in enumerate(("train", "validation", "test")):
        if not (part == number).any():
            raise DataError(f"split: no row for the {name} part; rows run from {_span(batch)}, see [split]")
    return Parts(*(batch.take(part == number) for number in range(3)))


def _span(batch: SampleBatch) -> str:
    return " to ".join(format_iso(np.array([batch.time_ns.min(), batch.time_ns.max()])))


def _by_stream(batch: SampleBatch, config: SplitConfig) -> I32:
    part_of = np.zeros(len(batch.stream_names), np.int32)
    for index, name in enumerate(batch.stream_names):
        if any(fnmatchcase(name, pattern) for pattern in config.test_streams):
            part_of[index] = 2
        elif any(fnmatchcase(name, pattern) for pattern in config.validation_streams):
            part_of[index] = 1
    return part_of[batch.stream_index]


def _by_time(batch: SampleBatch, config: SplitConfig) -> I32:
    """0, 1, 2 for train, validation, test; -1 for what lies behind ``until``."""
    time = batch.time_ns
    if config.validation_from:
        validation, test = iso_to_ns(config.validation_from), iso_to_ns(config.test_from)
        part = (time >= validation).astype(np.int32) + (time >= test)
    else:
        first, last = np.full(len(batch.stream_names), LIMIT_NS), np.full(len(batch.stream_names), -LIMIT_NS)
        np.minimum.at(first, batch.stream_index, time)
        np.maximum.at(last, batch.stream_index, time)
        last += 1
        begins_test = last - np.rint((last - first) * config.test).astype(np.int64)
        begins_validation = begins_test - np.rint((last - first) * config.validation).astype(np.int64)
        part = (time >= begins_validation[batch.stream_index]).astype(np.int32) + (
            time >= begins_test[batch.stream_index]
        )
    if config.until:
        part[time >= iso_to_ns(config.until)] = -1
    return part


def class_labels(batch: SampleBatch, wanted: Sequence[str], ignored: Sequence[str]) -> list[str]:
    """Labels in the order of ``wanted``, else all labels of the batch but the ignored, sorted.

    Raises DataError when none is left or a wanted one never occurs.
    """
    present: set[str] = set()
    if batch.label is not None:
        present = {batch.labels[code] for code in np.unique(batch.label) if code >= 0}
    labels = list(wanted) or sorted(present - set(ignored))
    absent = sorted(set(labels) - present)
    if absent or not labels:
        raise DataError(
            f"model.classes: expected labels of the training part ({', '.join(sorted(present)) or 'it has none'}),"
            f" got {', '.join(map(repr, absent)) or 'none'}"
        )
    return labels


def condition_all(batch: SampleBatch, spec: ConditioningSpec) -> Steps:
    """Condition a whole part from a fresh state."""
    table = StateTable(conditioning_columns(batch.values.shape[1]))
    return condition(batch, table, spec, max_streams=len(batch.stream_names))


def runs_of(batch: SampleBatch, spec: ConditioningSpec, labels: Sequence[str]) -> list[Run]:
    """Condition a part and cut it at its resets."""
    steps = condition_all(batch, spec)
    codes = batch.label_codes(labels)
    label = np.where(steps.row >= 0, codes[steps.row], np.int32(-1))
    # A fresh state begins each stream with a sample, never with an inserted step.
    names = [batch.stream_names[index] for index in batch.stream_index[steps.row[steps.start]].tolist()]
    parts = list(stretches(steps))
    groups = steps.group[np.array([part.start for part in parts], np.int64)]
    return [
        Run(
            stream=names[group],
            time_ns=steps.time_ns[part],
            x=steps.x[part],
            observed=steps.observed[part],
            label=label[part],
        )
        for part, group in zip(parts, groups.tolist(), strict=True)
    ]


def stretches(steps: Steps) -> Iterator[slice]:
    """The parts of ``steps`` between resets, stream after stream."""
    begins = np.union1d(steps.start, np.flatnonzero(steps.reset > 0)).astype(np.int64)
    ends: I64 = np.append(begins, len(steps))[1:]
    for a, b in zip(begins.tolist(), ends.tolist(), strict=True):
        yield slice(a, b)
