"""The records that travel between packages: columns of samples in, columns of predictions out.

A batch is a set of numpy columns of equal length, never a list of objects: a Python call costs about a microsecond, a
column operation a few nanoseconds per row.  A batch holds each stream name once (``stream_names``); rows refer to it
by index.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple, Self

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


class Code(IntEnum):
    """A code stored in columns and written as text."""

    @property
    def text(self) -> str:
        """The code as written in outputs, metric labels and summaries, e.g. ``clock_backwards``."""
        return self.name.lower()


class ResetReason(Code):
    """Why a stream's hidden state was reset to the initial state; a ``uint8`` column."""

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


class DropReason(Code):
    """Why a sample was not applied.  Every dropped sample has exactly one reason."""

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
    POISON = 21


class Status(Code):
    """How reliable an output is; a ``uint8`` column."""

    OK = 0
    WARMING = 1
    IMPUTED = 2
    DEGRADED = 3


@dataclass(frozen=True, slots=True)
class Position:
    """How far a source has read: the first ``offset`` bytes (Parquet: rows) of ``name``.

    ``fingerprint`` is private to the source, which detects by it that another input has taken the name.
    """

    name: str
    offset: int
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class RawMessage:
    """Bytes as they arrived, not yet decoded.

    ``key``         stream of records that do not name one: a file's stem, part of a topic, a port's name
    ``header``      what a decoder needs to read ``payload``: the first line of a CSV file
    ``arrival_ns``  wall-clock time in nanoseconds since 1970-01-01 UTC; 0 in a recorded file
    ``channel``     the only channel of the payload, where the topic names it
    ``fault``       why there is nothing to decode: the message counts as one rejected sample
    ``source``      name of the source, where messages of several sources are mixed
    ``topic``       where it came from: the whole topic, the port, the path of a file
    """

    payload: bytes
    key: str = ""
    header: bytes = b""
    arrival_ns: int = 0
    position: Position | None = None
    channel: str = ""
    fault: DropReason | None = None
    source: str = ""
    topic: str = ""


class Rejected(NamedTuple):
    """Records that did not become rows, for one reason.  A message has at most one entry for each reason.

    ``records``  how many
    ``message``  the message that held them; None where rows were rejected after decoding
    ``row``      number of the first of them in the payload, from 1: its line, or its place in a list
    ``offset``   byte of the payload at which it begins; None where the format does not say
    ``line``     its line without the line end, or its text in a list; empty where the whole message is at fault
    """

    reason: DropReason
    records: int = 1
    message: RawMessage | None = None
    row: int = 1
    offset: int | None = 0
    line: bytes = b""


class Dropped(NamedTuple):
    """Samples of one stream in one batch that conditioning dropped for one reason; the rest describes the first one.

    ``time_ns``  event time      ``channel``  index of the channel at fault, -1 for the sample as a whole
    ``value``    of that channel, NaN if it is missing; for LATE the age in seconds behind the newest sample
    """

    reason: DropReason
    stream: str
    records: int
    time_ns: int
    channel: int = -1
    value: float = math.nan


def merge_rejected(entries: Iterable[Rejected]) -> tuple[Rejected, ...]:
    """Add up the records of the entries for one message and one reason; the first place stays."""
    merged: dict[tuple[int, DropReason], Rejected] = {}
    for entry in entries:
        key = (id(entry.message), entry.reason)
        first = merged.get(key)
        merged[key] = entry if first is None else first._replace(records=first.records + entry.records)
    return tuple(merged.values())


@dataclass(frozen=True, slots=True)
class SourceHealth:
    """State of a source; counters count since the process started.

    ``connected``      the port is open, the broker has accepted the connection
    ``queued``         messages in its queue, ``queued_bytes`` their size
    ``reconnects``     connections that were lost and restored
    ``sessions_lost``  times a broker had discarded the session: messages may be missing
    ``qos0_messages``  messages received at QoS 0: a crash loses them
    ``redelivered``    messages that a broker sent again after they were processed; they were skipped
    """

    connected: bool = True
    queued: int = 0
    queued_bytes: int = 0
    reconnects: int = 0
    sessions_lost: int = 0
    qos0_messages: int = 0
    redelivered: int = 0


@dataclass(frozen=True, slots=True)
class SinkHealth:
    """State of a sink; counters count since the process started.

    ``connected``   the file is open, the broker or server has accepted the connection
    ``queued``      outputs that are not acknowledged yet
    ``failed``      outputs that the peer rejected permanently
    ``dropped``     outputs dropped because the queue was full
    ``reconnects``  connections that were lost and restored
    """

    connected: bool = True
    queued: int = 0
    failed: int = 0
    dropped: int = 0
    reconnects: int = 0


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """N samples of any streams, as columns, in order of arrival.

    ``stream_names``  names used in this batch
    ``stream_index``  (N,) int32, index into ``stream_names``
    ``time_ns``       (N,) int64, event time in nanoseconds since 1970-01-01 UTC
    ``values``        (N, C) float32 in engineering units, channels in the bundle's order; NaN means missing
    ``device_seq``    (N,) int64 device counter, -1 for none; or None
    ``label``         (N,) int32, index into ``labels``, -1 for none; or None
    ``reset``         (N,) bool, the device requests a reset before this sample; or None
    ``episode``       (N,) int64 key of the episode a sample belongs to; a change resets the stream; or None
    ``arrival_ns``    (N,) int64 wall-clock arrival time in nanoseconds since 1970-01-01 UTC, 0 where unknown; or None
    ``rejected``      records that did not become rows, see `Rejected`
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
    rejected: tuple[Rejected, ...] = ()

    def __len__(self) -> int:
        return len(self.time_ns)

    @property
    def received(self) -> int:
        """Number of samples that arrived: rows and rejected records."""
        return len(self) + sum(entry.records for entry in self.rejected)

    @property
    def rejected_counts(self) -> dict[DropReason, int]:
        """Number of rejected records by reason."""
        counts: dict[DropReason, int] = {}
        for entry in self.rejected:
            counts[entry.reason] = counts.get(entry.reason, 0) + entry.records
        return counts

    def rejecting(self, rows: Mask, reason: DropReason) -> Self:
        """Return the batch without ``rows``, (N,) bool, which count as rejected; itself where there are none."""
        count = int(np.count_nonzero(rows))
        if not count:
            return self
        return replace(self.take(~rows), rejected=merge_rejected((*self.rejected, Rejected(reason, count))))

    def label_codes(self, wanted: Sequence[str]) -> I32:
        """Return the index of each row's label in ``wanted``, (N,) int32; -1 for no label or another one."""
        if self.label is None:
            return np.full(len(self), -1, np.int32)
        known = {label: code for code, label in enumerate(wanted)}
        return np.array([known.get(label, -1) for label in self.labels] + [-1], np.int32)[self.label]

    def take(self, rows: slice | I64 | Mask) -> Self:
        """Return the selected rows, without the rejected records."""
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
            rejected=(),
        )


def empty_batch(channels: int, rejected: tuple[Rejected, ...] = ()) -> SampleBatch:
    """Return a batch of no rows and ``channels`` channels."""
    return SampleBatch(
        stream_names=(),
        stream_index=np.zeros(0, np.int32),
        time_ns=np.zeros(0, np.int64),
        values=np.zeros((0, channels), np.float32),
        rejected=rejected,
    )


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What all outputs of one model have in common.

    ``targets``    the D forecast channels
    ``horizon``    H, number of steps forecast
    ``labels``     the L classes; ``exclusive``: exactly one applies at a time
    ``level``      nominal coverage of the intervals
    ``warm_up``    steps after a reset whose outputs are marked as warming
    ``units``      of the targets; ``period_s`` seconds of a step; ``intervals`` whether forecasts have intervals
    """

    model_id: str
    targets: tuple[str, ...] = ()
    horizon: int = 0
    labels: tuple[str, ...] = ()
    exclusive: bool = True
    level: float = 0.9
    warm_up: int = 0
    units: tuple[str, ...] = ()
    period_s: float = 1.0
    intervals: bool = False


@dataclass(frozen=True, slots=True)
class PredictionBatch:
    """One output for each applied sample, as columns, in order of arrival.

    ``forecast, lower, upper``  (M, D, H) float32, engineering units, horizon 1..H; None without a forecast head
    ``probabilities``           (M, L) float32; None without a class head
    ``status, reset``           (M,) uint8, see `Status` and `ResetReason`
    ``imputed``                 (M,) int32, steps inserted before this sample plus channels held in it
    ``steps_since_reset``       (M,) int64, this one included
    ``label``                   (M,) int32, the true class (index into spec.labels), -1 if the input has none
    ``consecutive_misses``      (M,) int32, current run of true values outside the one-step interval, the maximum over
                                the targets; None without intervals
    ``alarm``                   (M,) bool; None without an alarm rule
    ``dropped``                 number of samples that were not applied, rejects included, by reason
    ``drops``                   the samples among them that conditioning dropped, by stream and reason
    ``resets``                  number of resets, by reason
    ``encoded``                 the rows in each form that a sink has asked for; see `connectors.sinks.encoders`
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
    drops: Sequence[Dropped] = ()
    resets: Mapping[ResetReason, int] = field(default_factory=dict)
    encoded: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def scorable(self) -> Mask:
        """Outputs that are neither warming nor degraded, (M,) bool; only these are scored."""
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
        """Return the selected rows, without the drops and the counts of drops and resets."""
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
            drops=(),
            resets={},
        )
