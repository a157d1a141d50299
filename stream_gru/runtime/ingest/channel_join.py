"""Joins channels that arrive in separate records into samples, by event time only.

A record of time t belongs to the window that ends at the next whole period, ``ceil(t / period) * period``.  A window is
emitted

    when every channel has a value within it, or
    when the watermark has passed it: the newest event time of the stream, of any channel, less
    ``allowed_lateness_ns``; so a channel that stops never blocks the others

but never before an older window of its stream.  A channel without a value in the window takes its last value, unless
that is older than ``hold_ns``: then it is missing.  A window without any value is not emitted: conditioning fills gaps.

A record of a window that was emitted is dropped: as duplicate when its time is that of the last value of each of its
channels, else as late.  Exception: a newer value within the last emitted window is a correction; it is kept as the last
value for the next windows.  A record without any value advances the time and is dropped as not finite, unless it has a
label or a reset flag.

When a record is far behind the newest one (an hour, or ``allowed_lateness_ns`` or a period where that is longer), the
clock was set back; when it is of another episode, time restarts.  In both cases pending windows are emitted and the
stream's state is cleared, so that conditioning sees the jump and resets.

The result does not depend on how records are cut into batches.

Decision: last values are taken from emitted windows only, in time order, so a record that comes early never shows in a
window before its own.
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
    Window,
)

_NAN = float("nan")
_BACKWARDS_NS = 3600 * NS_PER_S


@dataclass(frozen=True, slots=True)
class Joined:
    """Complete samples, with the rejects; ``joined``: how many records were accepted."""

    batch: SampleBatch
    joined: int


@dataclass(slots=True)
class _Rows:
    """Emitted windows, what was rejected before, and why records were dropped here."""

    names: list[str] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    episode: list[int] = field(default_factory=list)
    rejected: tuple[Rejected, ...] = ()
    dropped: dict[DropReason, int] = field(default_factory=dict)

    def drop(self, reason: DropReason) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def all_rejected(self) -> tuple[Rejected, ...]:
        return merge_rejected((*self.rejected, *(Rejected(reason, count) for reason, count in self.dropped.items())))


class ChannelJoiner:
    """Joins partial records of any number of streams; shared by sources that bring channels of the same streams.

    At most 64 windows of a stream are pending, then the oldest is emitted; records of streams beyond ``max_streams``
    are dropped.  ``state`` keeps pending windows and last values.
    """

    def __init__(
        self, channels: int, period_ns: int, hold_ns: int, allowed_lateness_ns: int, *, max_streams: int = 1000
    ) -> None:
        if channels < 1 or period_ns < 1 or hold_ns < 0 or allowed_lateness_ns < 0:
            raise ValueError("expected channels and a period above 0, hold and lateness of 0 or more")
        self._channels, self._period_ns = channels, period_ns
        self._hold_ns, self._lateness_ns, self.max_streams = hold_ns, allowed_lateness_ns, max_streams
        self._backwards_ns = max(_BACKWARDS_NS, allowed_lateness_ns, period_ns)
        self.state = JoinStates(channels, period_ns)

    @property
    def pending(self) -> int:
        """Windows that wait for channels, of all streams."""
        return sum(len(stream.pending) for _, stream in self.state.items())

    def join(self, batch: SampleBatch) -> Joined:
        """Accept partial records, in which NaN is an absent channel; return the samples that became complete.

        Raises ValueError when ``batch.values`` is not (N, C).
        """
        if batch.values.ndim != 2 or batch.values.shape[1] != self._channels:
            raise ValueError(f"values: expected shape (N, {self._channels}), got {batch.values.shape}")
        rows = _Rows(rejected=batch.rejected)
        accepted = self._accept(batch, rows) if len(batch) else 0
        return Joined(self._columns(rows), accepted)

    def flush(self) -> SampleBatch:
        """Emit all pending windows, streams in name order: no more records will come."""
        rows = _Rows()
        for name, stream in sorted((name, stream) for name, stream in self.state.items() if stream.pending):
            self.state.touch(name)
            self._emit(name, stream, -NEVER, rows)
        return self._columns(rows)

    def _accept(self, batch: SampleBatch, rows: _Rows) -> int:
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
        has_metadata = batch.device_seq is not None or batch.label is not None or batch.arrival_ns is not None
        accepted = 0
        for row, (index, time, window, begin, end, episode, reset) in enumerate(columns):
            name = batch.stream_names[index]
            stream = self._stream_for(name, time, episode, rows)
            if stream is None:
                rows.drop(DropReason.STREAM_LIMIT)
                continue
            if begin == end and not reset and (batch.label is None or batch.label[row] < 0):
                rows.drop(DropReason.NON_FINITE)
                self._emit_due(name, stream, rows)
                continue
            if window <= stream.emitted:
                reported = channels[begin:end]
                if self._is_correction(stream, window, time, reported, values[begin:end]):
                    accepted += 1
                elif reported and all(stream.last_ns[channel] == time for channel in reported):
                    rows.drop(DropReason.DUPLICATE)
                else:
                    rows.drop(DropReason.LATE)
                stream.reset |= reset and window > stream.reset_at
                continue
            accepted += 1
            found = stream.pending.get(window) or self._new_window(stream, window)
            found.reset |= reset
            for place in range(begin, end):
                channel = channels[place]
                before = found.times[channel]
                if time >= before:
                    found.reported += before == NEVER
                    found.values[channel], found.times[channel] = values[place], time
            if has_metadata:
                _copy_metadata(found, batch, row)
            self._emit_due(name, stream, rows)
        return accepted

    def _is_correction(
        self, stream: JoinState, window_ns: int, time_ns: int, channels: Sequence[int], values: Sequence[float]
    ) -> bool:
        """Keep newer values of the last emitted window as the last values; return False for any other record."""
        begin = window_ns - self._period_ns
        if window_ns != stream.emitted or not channels:
            return False
        if any(not begin < stream.last_ns[channel] < time_ns for channel in channels):
            return False
        for channel, value in zip(channels, values, strict=True):
            stream.last_value[channel], stream.last_ns[channel] = value, time_ns
        return True

    def _stream_for(self, name: str, time: int, episode: int, rows: _Rows) -> JoinState | None:
        """The state of a record's stream at its time, restarted where time restarts; None beyond ``max_streams``."""
        stream = self.state.get(name) or self._new_stream(name)
        if stream is None:
            return None
        self.state.touch(name)
        if time < stream.newest - self._backwards_ns or 0 <= episode != stream.episode >= 0:
            self._emit(name, stream, -NEVER, rows)
            stream = self.state.put(name, self._restarted(stream))
        if episode >= 0:
            stream.episode = episode
        if time > stream.newest:
            stream.newest = time
        return stream

    def _emit_due(self, name: str, stream: JoinState, rows: _Rows) -> None:
        """Emit windows behind the watermark, the oldest if it is complete, and complete ones right after these."""
        if not stream.pending:
            return
        due = stream.newest - self._lateness_ns
        if len(stream.pending) > MOST_PENDING:
            due = max(due, stream.oldest)
        if stream.oldest <= due or stream.pending[stream.oldest].reported == self._channels:
            self._emit(name, stream, due, rows)

    def _new_stream(self, name: str) -> JoinState | None:
        if len(self.state) >= self.max_streams:
            return None
        return self.state.put(name, JoinState([_NAN] * self._channels, [NEVER] * self._channels))

    def _restarted(self, stream: JoinState) -> JoinState:
        """A new state of the stream, with the reset flag that was not emitted yet."""
        return JoinState([_NAN] * self._channels, [NEVER] * self._channels, reset=stream.reset)

    def _new_window(self, stream: JoinState, time_ns: int) -> Window:
        window = Window(time_ns, [_NAN] * self._channels, [NEVER] * self._channels)
        stream.pending[time_ns] = window
        stream.oldest = min(stream.oldest, time_ns)
        return window

    def _emit(self, name: str, stream: JoinState, until_ns: int, rows: _Rows) -> None:
        """Emit pending windows up to ``until_ns``, and complete ones right after them, in time order."""
        pending = stream.pending
        for time_ns in sorted(pending):
            if time_ns > until_ns and pending[time_ns].reported < self._channels:
                break
            window = pending.pop(time_ns)
            window.reset |= stream.reset
            stream.reset = window.reset and not window.reported
            if window.reported:
                self._fill(window, stream)
                rows.names.append(name)
                rows.windows.append(window)
                rows.episode.append(stream.episode)
        stream.oldest = min(pending, default=-NEVER)

    def _fill(self, window: Window, stream: JoinState) -> None:
        """Fill a window with last values, and keep its own values as the last ones."""
        oldest = window.time_ns - self._hold_ns
        for channel, time in enumerate(window.times):
            if time != NEVER:
                stream.last_value[channel], stream.last_ns[channel] = window.values[channel], time
            elif stream.last_ns[channel] >= oldest:
                window.values[channel] = stream.last_value[channel]
        stream.emitted = window.time_ns
        if window.reset:
            stream.reset_at = window.time_ns

    def _columns(self, rows: _Rows) -> SampleBatch:
        windows = rows.windows
        if not windows:
            return empty_batch(self._channels, rows.all_rejected())
        streams, stream = _table(rows.names)
        labels, label = _table([window.label for window in windows], nothing="")
        resets = np.array([window.reset for window in windows], np.bool_)
        device_seq = np.array([window.device_seq for window in windows], np.int64)
        episode = np.array(rows.episode, np.int64)
        arrival = np.array([window.arrival_ns for window in windows], np.int64)
        return SampleBatch(
            stream_names=streams,
            stream_index=np.array(stream, np.int32),
            time_ns=np.array([window.time_ns for window in windows], np.int64),
            values=np.array([window.values for window in windows], np.float32),
            device_seq=device_seq if (device_seq >= 0).any() else None,
            label=np.array(label, np.int32) if labels else None,
            labels=labels,
            reset=resets if resets.any() else None,
            episode=episode if (episode >= 0).any() else None,
            arrival_ns=arrival if arrival.any() else None,
            rejected=rows.all_rejected(),
        )


def _copy_metadata(window: Window, batch: SampleBatch, row: int) -> None:
    """Copy what a record has besides values; the last record that has it counts."""
    if batch.device_seq is not None and batch.device_seq[row] >= 0:
        window.device_seq = int(batch.device_seq[row])
    if batch.label is not None and batch.label[row] >= 0:
        window.label = batch.labels[batch.label[row]]
    if batch.arrival_ns is not None:
        window.arrival_ns = int(batch.arrival_ns[row])


def _table(names: Sequence[str], nothing: str | None = None) -> tuple[tuple[str, ...], list[int]]:
    """The different names, and the index of each among them, -1 for ``nothing``."""
    index: dict[str, int] = {}
    codes = [-1 if name == nothing else index.setdefault(name, len(index)) for name in names]
    return tuple(index), codes
