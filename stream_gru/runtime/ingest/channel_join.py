"""Channels that arrive apart become samples, by event time only: any cut of the records into batches gives the same.

A record of time t belongs to the tick at the next whole period, ``ceil(t / period) * period``.  A tick is emitted

    when every channel has a value stamped within it, or
    when the watermark is there: the newest event time of the stream, of any channel, less ``wait_ns``, so that a
    channel that is silent never stops the others

but never before an older one of its stream that still waits.  So a complete tick goes at once where nothing older
waits, and else right after what does.  A channel without a value in the tick takes its last one, unless that is older
than ``max_age_ns`` at the tick: then it is missing.  A tick in which no channel reported is not emitted: filling gaps
is the business of conditioning.

A record whose tick has been emitted is dropped as late; as a duplicate when its time is that of the last value taken of
each of its channels, as it has come twice.  But a channel that reports more often than the period, and says something
newer within the last tick, is heard: its value is held for the next ticks.  A record without any value moves the time
on and is dropped as not finite, unless it has a label or asks for a reset.

A record far behind the newest one (an hour, or ``wait_ns`` or a period where that is longer) says that a clock was set
back, and one of another sequence that time begins anew: what is pending is emitted, nothing is held, and assembly
starts afresh, so that conditioning sees it and resets.

Decision: values are held from emitted ticks only, in the order of time, so that a record that comes early for its
stream never shows in a tick before its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from stream_gru.core.types import NS_PER_S, DropReason, Rejected, SampleBatch, empty_batch, merge_rejected
from stream_gru.runtime.ingest.channel_join_state import (
    MOST_PENDING,
    NEVER,
    JoinState,
    JoinStates,
    Tick,
)

_NAN = float("nan")
_BACKWARDS_NS = 3600 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Joined:
    """Samples that became complete, with the rejects; ``joined``: records that were taken in."""

    batch: SampleBatch
    joined: int


@dataclass(slots=True)
class _Rows:
    """Emitted ticks on their way into columns, what was rejected before, and why records were dropped here."""

    names: list[str] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    sequence: list[int] = field(default_factory=list)
    rejected: tuple[Rejected, ...] = ()
    dropped: dict[DropReason, int] = field(default_factory=dict)

    def drop(self, reason: DropReason) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def all_rejected(self) -> tuple[Rejected, ...]:
        return merge_rejected((*self.rejected, *(Rejected(reason, count) for reason, count in self.dropped.items())))


class ChannelJoiner:
    """Joins partial records of any number of streams; shared by sources that bring channels of the same streams.

    At most 64 ticks of a stream wait, then the oldest goes; records of more than ``max_streams`` streams are dropped.
    ``state``: what waits is as durable as what is held.
    """

    def __init__(
        self, channels: int, period_ns: int, max_age_ns: int, wait_ns: int, *, max_streams: int = 1000
    ) -> None:
        if channels < 1 or period_ns < 1 or max_age_ns < 0 or wait_ns < 0:
            raise ValueError("expected channels and a period above 0, and no negative age or wait")
        self._channels, self._period_ns = channels, period_ns
        self._max_age_ns, self._wait_ns, self.max_streams = max_age_ns, wait_ns, max_streams
        self._backwards_ns = max(_BACKWARDS_NS, wait_ns, period_ns)
        self.state = JoinStates(channels, period_ns)

    @property
    def pending(self) -> int:
        """Ticks that wait for channels, of all streams."""
        return sum(len(stream.pending) for _, stream in self.state.items())

    def join(self, batch: SampleBatch) -> Joined:
        """Take partial records in: NaN is a channel that a record does not have.  Return what became complete.

        Raises ValueError when ``batch.values`` is not (N, C).
        """
        if batch.values.ndim != 2 or batch.values.shape[1] != self._channels:
            raise ValueError(f"values: expected shape (N, {self._channels}), got {batch.values.shape}")
        rows = _Rows(rejected=batch.rejected)
        taken = self._take(batch, rows) if len(batch) else 0
        return Joined(self._columns(rows), taken)

    def flush(self) -> SampleBatch:
        """Emit all that is pending, streams in the order of their names: no more records will come."""
        rows = _Rows()
        for name, stream in sorted((name, stream) for name, stream in self.state.items() if stream.pending):
            self.state.touch(name)
            self._emit(name, stream, -NEVER, rows)
        return self._columns(rows)

    def _take(self, batch: SampleBatch, rows: _Rows) -> int:
        present = ~np.isnan(batch.values)
        channels, values = np.nonzero(present)[1].tolist(), batch.values[present].tolist()
        ends = np.cumsum(np.count_nonzero(present, axis=1)).tolist()
        columns = zip(
            batch.stream_index.tolist(),
            batch.time_ns.tolist(),
            (-(-batch.time_ns // self._period_ns) * self._period_ns).tolist(),
            [0, *ends],
            ends,
            repeat(-1) if batch.episode is None else batch.episode.tolist(),
            repeat(False) if batch.reset is None else batch.reset.tolist(),
            strict=False,
        )
        says_more = batch.device_seq is not None or batch.label is not None or batch.arrival_ns is not None
        taken = 0
        for row, (index, time, tick, begin, end, sequence, reset) in enumerate(columns):
            name = batch.stream_names[index]
            stream = self._stream_at(name, time, sequence, rows)
            if stream is None:
                rows.drop(DropReason.STREAM_LIMIT)
                continue
            if begin == end and not reset and (batch.label is None or batch.label[row] < 0):
                rows.drop(DropReason.NON_FINITE)
                self._emit_due(name, stream, rows)
                continue
            if tick <= stream.emitted:
                said = channels[begin:end]
                if self._says_again(stream, tick, time, said, values[begin:end]):
                    taken += 1
                elif said and all(stream.held_ns[channel] == time for channel in said):
                    rows.drop(DropReason.DUPLICATE)
                else:
                    rows.drop(DropReason.LATE)
                stream.reset |= reset and tick > stream.flagged
                continue
            taken += 1
            found = stream.pending.get(tick) or self._new_tick(stream, tick)
            found.reset |= reset
            for place in range(begin, end):
                channel = channels[place]
                before = found.times[channel]
                if time >= before:
                    found.reported += before == NEVER
                    found.values[channel], found.times[channel] = values[place], time
            if says_more:
                _describe(found, batch, row)
            self._emit_due(name, stream, rows)
        return taken

    def _says_again(
        self, stream: JoinState, tick_ns: int, time_ns: int, channels: Sequence[int], values: Sequence[float]
    ) -> bool:
        """Hold, for the ticks to come, what a channel says again within the tick that is out; False for any other."""
        begin = tick_ns - self._period_ns
        if tick_ns != stream.emitted or not channels:
            return False
        if any(not begin < stream.held_ns[channel] < time_ns for channel in channels):
            return False
        for channel, value in zip(channels, values, strict=True):
            stream.held[channel], stream.held_ns[channel] = value, time_ns
        return True

    def _stream_at(self, name: str, time: int, sequence: int, rows: _Rows) -> JoinState | None:
        """The stream of a record at its new time, begun afresh where need be; None when there are too many."""
        stream = self.state.get(name) or self._begin(name)
        if stream is None:
            return None
        self.state.touch(name)
        if time < stream.newest - self._backwards_ns or 0 <= sequence != stream.sequence >= 0:
            self._emit(name, stream, -NEVER, rows)
            stream = self.state.put(name, self._fresh(stream))
        if sequence >= 0:
            stream.sequence = sequence
        if time > stream.newest:
            stream.newest = time
        return stream

    def _emit_due(self, name: str, stream: JoinState, rows: _Rows) -> None:
        """Emit what the watermark has passed, the oldest tick when it is complete, and what is complete after these."""
        if not stream.pending:
            return
        due = stream.newest - self._wait_ns
        if len(stream.pending) > MOST_PENDING:
            due = max(due, stream.oldest)
        if stream.oldest <= due or stream.pending[stream.oldest].reported == self._channels:
            self._emit(name, stream, due, rows)

    def _begin(self, name: str) -> JoinState | None:
        if len(self.state) >= self.max_streams:
            return None
        return self.state.put(name, JoinState([_NAN] * self._channels, [NEVER] * self._channels))

    def _fresh(self, stream: JoinState) -> JoinState:
        """The stream as if nothing had been seen of it, but for a flag that is still to be told."""
        return JoinState([_NAN] * self._channels, [NEVER] * self._channels, reset=stream.reset)

    def _new_tick(self, stream: JoinState, time_ns: int) -> Tick:
        tick = Tick(time_ns, [_NAN] * self._channels, [NEVER] * self._channels)
        stream.pending[time_ns] = tick
        stream.oldest = min(stream.oldest, time_ns)
        return tick

    def _emit(self, name: str, stream: JoinState, until_ns: int, rows: _Rows) -> None:
        """Emit the pending ticks up to ``until_ns``, and complete ones right after them, in the order of time."""
        pending = stream.pending
        for time_ns in sorted(pending):
            if time_ns > until_ns and pending[time_ns].reported < self._channels:
                break
            tick = pending.pop(time_ns)
            tick.reset |= stream.reset
            stream.reset = tick.reset and not tick.reported
            if tick.reported:
                self._complete(tick, stream)
                rows.names.append(name)
                rows.ticks.append(tick)
                rows.sequence.append(stream.sequence)
        stream.oldest = min(pending, default=-NEVER)

    def _complete(self, tick: Tick, stream: JoinState) -> None:
        """Fill a tick from what is held, and hold what it brings."""
        oldest = tick.time_ns - self._max_age_ns
        for channel, time in enumerate(tick.times):
            if time != NEVER:
                stream.held[channel], stream.held_ns[channel] = tick.values[channel], time
            elif stream.held_ns[channel] >= oldest:
                tick.values[channel] = stream.held[channel]
        stream.emitted = tick.time_ns
        if tick.reset:
            stream.flagged = tick.time_ns

    def _columns(self, rows: _Rows) -> SampleBatch:
        ticks = rows.ticks
        if not ticks:
            return empty_batch(self._channels, rows.all_rejected())
        streams, stream = _table(rows.names)
        labels, label = _table([tick.label for tick in ticks], nothing="")
        resets = np.array([tick.reset for tick in ticks], np.bool_)
        seq = np.array([tick.seq for tick in ticks], np.int64)
        sequence = np.array(rows.sequence, np.int64)
        arrival = np.array([tick.arrival_ns for tick in ticks], np.int64)
        return SampleBatch(
            stream_names=streams,
            stream_index=np.array(stream, np.int32),
            time_ns=np.array([tick.time_ns for tick in ticks], np.int64),
            values=np.array([tick.values for tick in ticks], np.float32),
            device_seq=seq if (seq >= 0).any() else None,
            label=np.array(label, np.int32) if labels else None,
            labels=labels,
            reset=resets if resets.any() else None,
            episode=sequence if (sequence >= 0).any() else None,
            arrival_ns=arrival if arrival.any() else None,
            rejected=rows.all_rejected(),
        )


def _describe(tick: Tick, batch: SampleBatch, row: int) -> None:
    """What a record says besides values: the last one that says it counts."""
    if batch.device_seq is not None and batch.device_seq[row] >= 0:
        tick.seq = int(batch.device_seq[row])
    if batch.label is not None and batch.label[row] >= 0:
        tick.label = batch.labels[batch.label[row]]
    if batch.arrival_ns is not None:
        tick.arrival_ns = int(batch.arrival_ns[row])


def _table(names: Sequence[str], nothing: str | None = None) -> tuple[tuple[str, ...], list[int]]:
    """The different names, and the index of each among them, -1 for ``nothing``."""
    index: dict[str, int] = {}
    codes = [-1 if name == nothing else index.setdefault(name, len(index)) for name in names]
    return tuple(index), codes
