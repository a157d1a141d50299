"""Recordings to training data: split into train, validation and test, condition, cut into segments without a reset.

Conditioning is the same as for live data.  Each part is split off before it is conditioned, with a state of its own, so
that no held value, no filled gap and no forecast truth crosses a split.

Sizes: N rows, T steps of one segment, C channels, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from stream_gru.config import ModelConfig, SplitConfig, TrainingConfig
from stream_gru.core.errors import DataError
from stream_gru.core.timestamps import LIMIT_NS, format_iso, iso_to_ns
from stream_gru.core.types import F32, I32, I64, Mask, SampleBatch
from stream_gru.pipeline.conditioning.condition import condition
from stream_gru.pipeline.conditioning.gap_filling import Steps
from stream_gru.pipeline.conditioning.spec import ConditioningSpec, conditioning_columns
from stream_gru.pipeline.state_table import StateTable


@dataclass(frozen=True)
class Splits:
    """The three parts of all recordings, rows in order of arrival."""

    train: SampleBatch
    validation: SampleBatch
    test: SampleBatch


def split(batch: SampleBatch, config: SplitConfig) -> Splits:
    """Split the rows.  Raises DataError when a part is empty."""
    part = _by_stream(batch, config) if config.by == "stream" else _by_time(batch, config)
    for number, name in enumerate(("train", "validation", "test")):
        if not (part == number).any():
            raise DataError(f"split: no row in the {name} part; the rows span {_span(batch)}, see [split]")
    return Splits(*(batch.take(part == number) for number in range(3)))


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
    """0, 1, 2 for train, validation, test; -1 from ``until`` on."""
    time = batch.time_ns
    if config.validation_from:
        validation, test = iso_to_ns(config.validation_from), iso_to_ns(config.test_from)
        part = (time >= validation).astype(np.int32) + (time >= test)
    else:
        first, last = np.full(len(batch.stream_names), LIMIT_NS), np.full(len(batch.stream_names), -LIMIT_NS)
        np.minimum.at(first, batch.stream_index, time)
        np.maximum.at(last, batch.stream_index, time)
        last += 1
        test_from = last - np.rint((last - first) * config.test).astype(np.int64)
        validation_from = test_from - np.rint((last - first) * config.validation).astype(np.int64)
        part = (time >= validation_from[batch.stream_index]).astype(np.int32) + (time >= test_from[batch.stream_index])
    if config.until:
        part[time >= iso_to_ns(config.until)] = -1
    return part


def class_labels(batch: SampleBatch, wanted: Sequence[str], ignored: Sequence[str]) -> list[str]:
    """Return the labels in the order of ``wanted``, else all labels of the batch except the ignored, sorted.

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


def check_label_count(model: ModelConfig, labels: Sequence[str]) -> None:
    """Raise DataError when a ``logistic`` head, which decides between two labels, gets another number of them."""
    if model.classes is not None and model.classes.activation == "logistic" and len(labels) != 2:
        raise DataError(
            f'model.classes.activation "logistic": expected two labels, got {len(labels)} ({", ".join(labels)});'
            ' use "softmax", or name two in model.classes.labels'
        )


def condition_all(batch: SampleBatch, spec: ConditioningSpec) -> Steps:
    """Condition a whole part from the initial state."""
    table = StateTable(conditioning_columns(batch.values.shape[1]))
    return condition(batch, table, spec, max_streams=len(batch.stream_names))


def segments_of(batch: SampleBatch, spec: ConditioningSpec, labels: Sequence[str]) -> list[Segment]:
    """Condition a part and cut it at its resets."""
    steps = condition_all(batch, spec)
    codes = batch.label_codes(labels)
    label = np.where(steps.row >= 0, codes[steps.row], np.int32(-1))
    # From the initial state each stream begins with a sample, never with an inserted step.
    names = [batch.stream_names[index] for index in batch.stream_index[steps.row[steps.start]].tolist()]
    slices = list(segment_slices(steps))
    groups = steps.group[np.array([part.start for part in slices], np.int64)]
    return [
        Segment(
            stream=names[group],
            time_ns=steps.time_ns[part],
            x=steps.x[part],
            observed=steps.observed[part],
            label=label[part],
        )
        for part, group in zip(slices, groups.tolist(), strict=True)
    ]


def segment_slices(steps: Steps) -> Iterator[slice]:
    """The slices of ``steps`` between resets, one stream after another."""
    begins = np.union1d(steps.start, np.flatnonzero(steps.reset > 0)).astype(np.int64)
    ends: I64 = np.append(begins, len(steps))[1:]
    for a, b in zip(begins.tolist(), ends.tolist(), strict=True):
        yield slice(a, b)


def check_segments(training: TrainingConfig, segments: Sequence[Segment], log: Callable[[str], None]) -> None:
    """Raise DataError when the training part has no segment, or none as long as a window with ``window_loss`` "last".

    Such a model predicts at the last step of a window only, so shorter segments get no valid prediction; their number
    is logged.
    """
    if not segments:
        raise DataError("training part: every sample was dropped; see [input], the ranges of [[channel]] and [split]")
    if training.regime != "windowed" or training.window_loss != "last":
        return
    short = sum(len(segment) < training.window for segment in segments)
    if short == len(segments):
        raise DataError(
            f"training.window (now {training.window}): no segment between two resets is that long, the longest has"
            f" {max(map(len, segments))} samples, so no prediction would be valid; choose a smaller window, or"
            ' window_loss = "every"'
        )
    if short:
        log(
            f"{short:,} of {len(segments):,} segments are shorter than the window of {training.window} steps: they are"
            ' trained on but get no valid prediction; use window_loss = "every" to get them'
        )


@dataclass(frozen=True)
class Segment:
    """Consecutive steps of one stream without a reset: training may carry the state across them.

    ``time_ns``   (T,) int64, event time in nanoseconds since 1970-01-01 UTC
    ``x``         (T, I) float32, channels in engineering units with gaps filled, then calendar inputs
    ``observed``  (T, C) bool, False where a value was filled in: never a forecast target
    ``label``     (T,) int32 class index, -1 = none or ignored
    """

    stream: str
    time_ns: I64
    x: F32
    observed: Mask
    label: I32

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Scaling:
    """scaled = (value - mean) / scale; both (C,) float32 in engineering units, the scale never 0."""

    mean: F32
    scale: F32


def measure_scaling(
    segments: Sequence[Segment], method: Literal["standard", "minmax", "none"], numeric: Sequence[int] | None = None
) -> Scaling:
    """Measure offset and scale of each channel over its observed values; a constant channel gets the scale 1.

    ``standard``: mean and standard deviation; ``minmax``: minimum and range; ``none``: 0 and 1, as for channels that
    are not ``numeric`` (None: all are).
    Raises DataError when a channel has no observed value.
    """
    channels = segments[0].observed.shape[1]
    mean, scale = np.zeros(channels), np.ones(channels)
    measured = range(channels) if numeric is None else numeric
    x = np.concatenate([segment.x for segment in segments])
    observed = np.concatenate([segment.observed for segment in segments])
    for c in measured if method != "none" else ():
        values = x[observed[:, c], c].astype(np.float64)
        if not len(values):
            msg = f"channel {c + 1} of {channels}: no value in the training part"
            raise DataError(msg)
        standard = method == "standard"
        mean[c], scale[c] = (values.mean(), values.std()) if standard else (values.min(), np.ptp(values))
    flat = scale <= np.abs(mean) * np.finfo(np.float32).eps
    return Scaling(mean.astype(np.float32), np.where(flat, 1.0, scale).astype(np.float32))


@dataclass(frozen=True)
class SegmentTable:
    """All segments in one table, one after another.

    ``x`` (N, I), ``observed`` (N, C), ``label`` (N,) as in `Segment`; segment s is the rows ``start[s]`` up to
    ``stop[s]``; ``end`` (N,) is the stop of the segment that each row belongs to.
    """

    x: F32
    observed: Mask
    label: I32
    start: I64
    stop: I64
    end: I64

    def __len__(self) -> int:
        return len(self.x)


def join_segments(segments: Sequence[Segment]) -> SegmentTable:
    """Concatenate segments.  Raises DataError when there is no row, or when an input is not finite."""
    segments = [segment for segment in segments if len(segment)]
    if not segments:
        msg = "no samples: every segment is empty"
        raise DataError(msg)
    stop = np.cumsum([len(segment) for segment in segments], dtype=np.int64)
    lengths = np.diff(stop, prepend=0)
    x = np.concatenate([segment.x for segment in segments]).astype(np.float32, copy=False)
    bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(bad):
        index = int(np.searchsorted(stop, bad[0], side="right"))
        row = bad[0] - stop[index] + lengths[index]
        msg = f"stream {segments[index].stream!r}: input not finite at row {row} of its segment; fill gaps first"
        raise DataError(msg)
    return SegmentTable(
        x=x,
        observed=np.concatenate([segment.observed for segment in segments]),
        label=np.concatenate([segment.label for segment in segments]).astype(np.int32, copy=False),
        start=stop - lengths,
        stop=stop,
        end=np.repeat(stop, lengths),
    )
