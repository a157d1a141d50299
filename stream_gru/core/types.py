"""The records that travel between the rooms: columns of samples in, columns of predictions out.

A batch is a set of equally long numpy columns, never a list of objects: Python costs about a microsecond
a call, a column operation a few nanoseconds a row.  Stream names are written once a batch (``streams``) and
referred to by index.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

NS_PER_S = 1_000_000_000
STREAM_ID = re.compile(r"[A-Za-z0-9_.:/ -]{1,128}")

_T = TypeVar("_T", bound=np.generic)


class ResetReason(IntEnum):
    """Why a stream's hidden state was replaced by the initial state; stored as a ``uint8`` column."""

    NONE = 0
    FIRST_SAMPLE = 1
    GAP = 2
    CLOCK_BACKWARDS = 3
    FLAG = 4
    BOUNDARY = 5
    WINDOW = 6
    NON_FINITE_STATE = 7
    MODEL_CHANGED = 8
    COMMAND = 9
    STATE_DAMAGED = 10

    @property
    def text(self) -> str:
        """The reason as it stands in outputs and metric labels, e.g. ``clock_backwards``."""
        return self.name.lower()


class DropReason(IntEnum):
    """Why a sample was not applied.  Every dropped sample has exactly one."""

    LATE = 1
    DUPLICATE = 2
    NON_FINITE = 3
    OUT_OF_RANGE = 4
    PARSE = 5
    MISSING_FIELD = 6
    TYPE = 7
    TIMESTAMP = 8
    ENCODING = 9
    TOO_LARGE = 10
    BAD_STREAM_ID = 11
    STREAM_LIMIT = 12
    OVERLONG_LINE = 13
    CHECKSUM = 14
    UNKNOWN_STREAM = 15
    RETAINED = 16
    PAUSED = 17
    TOO_DEEP = 18
    TOO_MANY_FIELDS = 19
    RATE = 20

    @property
    def text(self) -> str:
        """The reason as it stands in metric labels and summaries, e.g. ``out_of_range``."""
        return self.name.lower()


class Status(IntEnum):
    """How far an output is to be trusted; stored as a ``uint8`` column."""

    OK = 0
    WARMING = 1
    IMPUTED = 2
    DEGRADED = 3


@dataclass(frozen=True, slots=True)
class Position:
    """Where in its input a source stands: all before ``offset`` bytes (of Parquet: rows) of ``name`` has been read.

    ``check`` is the source's own affair: by it the source knows an input again that was put in the place of another.
    """

    name: str
    offset: int
    check: str = ""


@dataclass(frozen=True, slots=True)
class RawMessage:
    """Bytes as they arrived, before anybody looked inside.

    ``key`` names the stream of records that do not name their own (a file's stem, what a topic says, a port's name);
    ``header`` repeats what a reader needs to understand ``payload`` (the first line of a CSV file); ``arrival_ns`` is
    wall-clock time since the epoch, 0 in a recorded file; ``channel`` is the one channel that the payload is about,
    where its topic says so; with a ``fault`` there is nothing to decode: it is one rejected sample.  ``source`` is the
    name of the source, where messages of several travel together.
    """

    payload: bytes
    key: str = ""
    header: bytes = b""
    arrival_ns: int = 0
    position: Position | None = None
    channel: str = ""
    fault: DropReason | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """How a source is doing; counters count since the process began.

    ``connected``   the port is open, the broker has answered
    ``queued``      messages that wait in its queue, ``queued_bytes`` their size
    ``reconnects``  how often it was lost and found again
    ``sessions_lost``  how often a broker had forgotten the session: messages may be missing
    ``unprotected`` messages that came without acknowledgement (QoS 0): a crash loses them
    ``redelivered`` messages that a broker sent again though we had them: they were not taken twice
    """

    connected: bool = True
    queued: int = 0
    queued_bytes: int = 0
    reconnects: int = 0
    sessions_lost: int = 0
    unprotected: int = 0
    redelivered: int = 0


@dataclass(frozen=True, slots=True)
class SinkHealth:
    """How a sink is doing; counters count since the process began.

    ``connected``  the file is open, the broker or server has answered
    ``queued``     outputs that are not confirmed yet
    ``failed``     outputs that the other side refused for good
    ``discarded``  outputs given up because the queue was full
    ``reconnects`` how often it was lost and found again
    """

    connected: bool = True
    queued: int = 0
    failed: int = 0
    discarded: int = 0
    reconnects: int = 0


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """N samples of any streams, as columns, in the order of arrival.

    ``stream_names``  names used in this batch
    ``stream_index``  (N,) int32, index into ``stream_names``
    ``time_ns``       (N,) int64, event time in nanoseconds since 1970-01-01 UTC
    ``values``        (N, C) float32 in engineering units, channels in the bundle's order; NaN means missing
    ``device_seq``    (N,) int64 device counter, -1 for none; or None
    ``label``         (N,) int32, index into ``labels``, -1 for none; or None
    ``reset``         (N,) bool, the device asks for a reset before this sample; or None
    ``episode``       (N,) int64 key of the episode a sample belongs to; a change resets the stream; or None
    ``arrival_ns``    (N,) int64 wall-clock time at which a row's bytes arrived, 0 where unknown; or None
    ``rejected``      samples that never became rows, by reason
    """

    stream_names: tuple[str, ...]
    stream_index: I32
    time_ns: I64
    values: F32
    device_seq: I64 | None = None
    label: I32 | None = None
    labels: tuple[str, ...] = ()
    reset: Mask | None = None
    episode: I64 | None = None
    arrival_ns: I64 | None = None
    rejected: Mapping[DropReason, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time_ns)

    @property
    def received(self) -> int:
        """Samples that arrived: rows and rejects together."""
        return len(self) + sum(self.rejected.values())

    def label_codes(self, wanted: Sequence[str]) -> I32:
        """Index of each row's label in ``wanted``, (N,); -1 where it has none or another."""
        if self.label is None:
            return np.full(len(self), -1, np.int32)
        known = {label: code for code, label in enumerate(wanted)}
        return np.array([known.get(label, -1) for label in self.labels] + [-1], np.int32)[self.label]

    def take(self, rows: slice | I64 | Mask) -> Self:
        """Return the chosen rows (no rejects: those are counted where they happened)."""
        return replace(
            self,
            stream_index=self.stream_index[rows],
            time_ns=self.time_ns[rows],
            values=self.values[rows],
            device_seq=None if self.device_seq is None else self.device_seq[rows],
            label=None if self.label is None else self.label[rows],
            reset=None if self.reset is None else self.reset[rows],
            episode=None if self.episode is None else self.episode[rows],
            arrival_ns=None if self.arrival_ns is None else self.arrival_ns[rows],
            rejected={},
        )


def empty_batch(channels: int, rejected: Mapping[DropReason, int] | None = None) -> SampleBatch:
    """A batch of no rows and ``channels`` channels, perhaps with rejects."""
    return SampleBatch(
        stream_names=(),
        stream_index=np.zeros(0, np.int32),
        time_ns=np.zeros(0, np.int64),
        values=np.zeros((0, channels), np.float32),
        rejected=dict(rejected or {}),
    )


def concatenate(batches: Sequence[SampleBatch], channels: int) -> SampleBatch:
    """Join batches in order; stream and label tables are merged, optional columns are kept where any batch has them."""
    if len(batches) == 1:
        return batches[0]
    rejected: dict[DropReason, int] = {}
    for batch in batches:
        for reason, n in batch.rejected.items():
            rejected[reason] = rejected.get(reason, 0) + n
    full = [batch for batch in batches if len(batch)]
    if not full:
        return empty_batch(channels, rejected)
    streams, stream = _merge_tables([b.stream_names for b in full], [b.stream_index for b in full])
    labels, label = _merge_tables(
        [b.labels for b in full],
        [np.full(len(b), -1, np.int32) if b.label is None else b.label for b in full],
    )
    return SampleBatch(
        stream_names=streams,
        stream_index=stream,
        time_ns=np.concatenate([b.time_ns for b in full]),
        values=np.concatenate([b.values for b in full]),
        device_seq=_join([b.device_seq for b in full], full, -1, np.int64),
        label=label if any(b.label is not None for b in full) else None,
        labels=labels,
        reset=_join([b.reset for b in full], full, False, np.bool_),
        episode=_join([b.episode for b in full], full, -1, np.int64),
        arrival_ns=_join([b.arrival_ns for b in full], full, 0, np.int64),
        rejected=rejected,
    )


def _merge_tables(tables: Sequence[tuple[str, ...]], columns: Sequence[I32]) -> tuple[tuple[str, ...], I32]:
    """Rewrite index columns so that all refer to one common table; -1 stays -1."""
    index: dict[str, int] = {}
    parts = []
    for table, column in zip(tables, columns, strict=True):
        lookup = np.array([index.setdefault(name, len(index)) for name in table] + [-1], np.int32)
        parts.append(lookup[column])
    return tuple(index), np.concatenate(parts)


def _join(
    columns: Sequence[NDArray[_T] | None], batches: Sequence[SampleBatch], fill: object, dtype: type[_T]
) -> NDArray[_T] | None:
    if all(column is None for column in columns):
        return None
    return np.concatenate(
        [
            np.full(len(batch), fill, dtype) if column is None else column
            for column, batch in zip(columns, batches, strict=True)
        ]
    )


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What all outputs of one model have in common.

    ``targets`` D forecast channels, ``horizon`` H steps, ``labels`` L classes (``exclusive``: one class at a
    time), ``level`` nominal coverage of the intervals, ``warm_up`` steps after a reset whose outputs are marked.
    """

    model_id: str
    targets: tuple[str, ...] = ()
    horizon: int = 0
    labels: tuple[str, ...] = ()
    exclusive: bool = True
    level: float = 0.9
    warm_up: int = 0


@dataclass(frozen=True, slots=True)
class PredictionBatch:
    """One output for each applied sample, as columns, in the order in which the samples arrived.

    ``forecast, lower, upper``  (M, D, H) float32, engineering units, horizon 1..H; None without a forecast head
    ``probabilities``           (M, L) float32; None without a class head
    ``status, reset``           (M,) uint8, see `Status` and `ResetReason`
    ``imputed``                 (M,) int32, steps inserted before this sample plus channels held in it
    ``steps_since_reset``       (M,) int64, this one included
    ``label``                   (M,) int32, the true class where the input has it (index into spec.labels), else -1
    ``consecutive_misses``      (M,) int32, how many truths in a row, up to this one, lay outside the one-step interval:
                                the longest such run of any target; None without intervals
    ``alarm``                   (M,) bool; None without an alarm rule
    ``dropped``                 samples of this batch that were not applied, rejects included, by reason
    ``resets``                  resets of this batch by reason
    """

    spec: OutputSpec
    stream_names: tuple[str, ...]
    stream_index: I32
    time_ns: I64
    status: U8
    reset: U8
    steps_since_reset: I64
    imputed: I32
    device_seq: I64 | None = None
    forecast: F32 | None = None
    lower: F32 | None = None
    upper: F32 | None = None
    probabilities: F32 | None = None
    label: I32 | None = None
    consecutive_misses: I32 | None = None
    alarm: Mask | None = None
    dropped: Mapping[DropReason, int] = field(default_factory=dict)
    resets: Mapping[ResetReason, int] = field(default_factory=dict)

    @property
    def scorable(self) -> Mask:
        """Outputs that are neither warming nor degraded, (M,) bool: only these are scored."""
        return (self.status == Status.OK) | (self.status == Status.IMPUTED)

    @property
    def predicted_class(self) -> I64:
        """Index of the most probable class, (M,) int64; -1 where there is no class head or a value is not finite."""
        if self.probabilities is None:
            return np.full(len(self), -1, np.int64)
        known = np.logical_and.reduce(np.isfinite(self.probabilities), axis=1)
        return np.where(known, self.probabilities.argmax(axis=1), -1)

    def __len__(self) -> int:
        return len(self.time_ns)

    def take(self, rows: slice | I64 | Mask) -> Self:
        """Return the chosen rows (no drops and resets: those are counted where they happened)."""
        return replace(
            self,
            stream_index=self.stream_index[rows],
            time_ns=self.time_ns[rows],
            status=self.status[rows],
            reset=self.reset[rows],
            steps_since_reset=self.steps_since_reset[rows],
            imputed=self.imputed[rows],
            device_seq=None if self.device_seq is None else self.device_seq[rows],
            forecast=None if self.forecast is None else self.forecast[rows],
            lower=None if self.lower is None else self.lower[rows],
            upper=None if self.upper is None else self.upper[rows],
            probabilities=None if self.probabilities is None else self.probabilities[rows],
            label=None if self.label is None else self.label[rows],
            consecutive_misses=None if self.consecutive_misses is None else self.consecutive_misses[rows],
            alarm=None if self.alarm is None else self.alarm[rows],
            dropped={},
            resets={},
        )
