"""Device clocks that count from boot, and device counters that number samples.

Decision: a stream has one clock offset, from the arrival of its first sample, so the distances between samples are the
device's own, whatever delay the network adds.  The offset changes only when the device restarts, or when event and
arrival time differ by more than a minute: the device slept, its clock drifts, or the gateway's clock was set.

The results depend on rows and arrival times, not on how rows are batched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from stream_gru.core.keyed_state import Int64, KeyedState
from stream_gru.core.types import I64, NS_PER_S, DropReason, SampleBatch

_MAX_DISORDER_NS = NS_PER_S  # a row at most this much older than the newest is late; an older one means a restart
_MAX_DRIFT_NS = 60 * NS_PER_S
_LONGEST_NS = 2**62  # sums of two such numbers fit into 64 bits
_Moment = Annotated[int, Meta(ge=-(2**62) - 2**61, le=2**62 + 2**61)]  # an event is never far from its arrival


class _ClockOffset(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The clock of one stream, in nanoseconds: ``event = device + offset``."""

    offset: _Moment
    device: _Moment  # newest device time with this offset, and its event time
    event: _Moment


class DeviceClock:
    """Turns device time into event time, stream by stream; a device counter wraps around after ``wrap_ns``.

    Streams beyond ``max_streams`` get the time of arrival.  ``state`` keeps the clock offsets.
    """

    def __init__(self, wrap_ns: int, max_streams: int = 10_000) -> None:
        self._wrap_ns, self.max_streams = wrap_ns, max_streams
        self.state: KeyedState[_ClockOffset] = KeyedState(_ClockOffset, "device clocks")

    def apply(self, batch: SampleBatch) -> SampleBatch:
        """Return ``batch`` with ``time_ns`` since the epoch in place of nanoseconds since the device's boot.

        A row without an arrival time, or whose device time is out of range, is rejected as TIMESTAMP.
        """
        if not len(batch):
            return batch
        arrival = np.zeros(len(batch), np.int64) if batch.arrival_ns is None else batch.arrival_ns
        usable = (arrival > 0) & (arrival < _LONGEST_NS) & (batch.time_ns >= 0) & (batch.time_ns < _LONGEST_NS)
        if not usable.all():
            batch, arrival = batch.rejecting(~usable, DropReason.TIMESTAMP), arrival[usable]
        time_ns = np.empty_like(batch.time_ns)
        codes, first = np.unique(batch.stream_index, return_index=True)
        for code in codes[np.argsort(first)].tolist():  # in order of arrival, which decides the streams that are kept
            rows = np.flatnonzero(batch.stream_index == code)
            time_ns[rows] = self._events(batch.stream_names[code], batch.time_ns[rows], arrival[rows])
        return replace(batch, time_ns=time_ns)

    def _events(self, stream: str, device: I64, arrival: I64) -> I64:
        """Event times of the rows of one stream, (N,) int64."""
        clock = self.state.get(stream)
        if clock is None:
            if len(self.state) >= self.max_streams:
                return arrival
            clock = self.state.put(stream, _ClockOffset(int(arrival[0] - device[0]), int(device[0]), int(arrival[0])))
        self.state.touch(stream)
        events = device + clock.offset
        ascending = device[0] >= clock.device and bool(np.all(device[1:] >= device[:-1]))
        if ascending and bool(np.all(np.abs(arrival - events) <= _MAX_DRIFT_NS)):
            clock.device, clock.event = int(device[-1]), int(events[-1])
            return events
        pairs = zip(device.tolist(), arrival.tolist(), strict=True)
        return np.array([self._event(clock, *pair) for pair in pairs], np.int64)

    def _event(self, clock: _ClockOffset, device: int, arrival: int) -> int:
        """Event time of one row; updates the offset where the clock wrapped, restarted or drifted."""
        if device < clock.device:
            late, wrapped = device + clock.offset, device + clock.offset + self._wrap_ns
            out_of_order = clock.device - device <= _MAX_DISORDER_NS and abs(arrival - late) <= _MAX_DRIFT_NS
            if out_of_order and abs(arrival - late) <= abs(arrival - wrapped):
                return late
            if abs(arrival - wrapped) > _MAX_DRIFT_NS:
                return _set_offset(clock, device, arrival)
            clock.offset += self._wrap_ns
        event = device + clock.offset
        if abs(arrival - event) > _MAX_DRIFT_NS:
            return _set_offset(clock, device, arrival)
        clock.device, clock.event = device, event
        return event


def _set_offset(clock: _ClockOffset, device: int, arrival: int) -> int:
    """Set a new offset and return the event time, which is later than all before."""
    event = max(arrival, clock.event + 1)
    clock.offset, clock.device, clock.event = event - device, device, event
    return event


_LONGEST_GAP = 1_000_000
_NEAR_END = 0.05  # of the range: a counter that falls from its end to its start has wrapped around


class _Place(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """``last``: the latest number; ``before``: the number before the counter fell to a lower one, else ``last``."""

    last: Int64
    before: Int64


class GapCounter:
    """Counts the samples of each stream that are missing where its counter jumps.

    A lower number is a repeated sample or a restarted device, a jump by more than a million is another device: both are
    no gap.  Counters of 8, 16 and 32 bits wrap around.  Numbers below zero count as absent.  The result does not depend
    on how rows are batched.  Streams beyond ``max_streams`` are not counted.  ``state`` keeps the numbers.
    """

    def __init__(self, max_streams: int = 10_000) -> None:
        self.state: KeyedState[_Place] = KeyedState(_Place, "device counters")
        self.max_streams = max_streams

    def observe(self, batch: SampleBatch) -> int:
        """Return how many samples are missing before and within ``batch``."""
        if batch.device_seq is None or not len(batch):
            return 0
        counted = batch.device_seq >= 0
        codes, first = np.unique(batch.stream_index[counted], return_index=True)
        missing = 0
        for code in codes[
            np.argsort(first)
        ].tolist():  # in order of arrival, which decides the streams that are counted
            missing += self._missing(batch.stream_names[code], batch.device_seq[counted & (batch.stream_index == code)])
        return missing

    def _missing(self, stream: str, seq: I64) -> int:
        """Missing samples of one stream."""
        numbers: list[int] = seq.tolist()
        place = self.state.get(stream)
        if place is None:
            if len(self.state) >= self.max_streams:
                return 0
            place = self.state.put(stream, _Place(numbers[0], numbers[0]))
            return sum(_step(place, number) for number in numbers[1:])
        self.state.touch(stream)
        if numbers[0] == place.last + 1 and place.before == place.last and bool(np.all(np.diff(seq) == 1)):
            place.last = place.before = numbers[-1]
            return 0
        return sum(_step(place, number) for number in numbers)


def _step(place: _Place, number: int) -> int:
    """Advance to ``number`` and return how many are missing before it."""
    if number > place.last:
        # After repeated samples, new ones continue from the highest number.
        seen = place.before if place.last < place.before < number else place.last
        place.last, place.before = number, max(number, place.before)
        return _gap(number - seen)
    turn = _turn(place.last, number)
    if turn:
        gap = _gap(number + turn - place.last)
        place.last = place.before = number
        return gap
    if number < place.last:
        place.before, place.last = place.last, number
    return 0


def _gap(jump: int) -> int:
    return jump - 1 if jump <= _LONGEST_GAP else 0


def _turn(last: int, number: int) -> int:
    """The range of the counter where it wrapped around between these numbers, else 0."""
    for bits in (8, 16, 32):
        size = 1 << bits
        if size * (1 - _NEAR_END) <= last < size and number < size * _NEAR_END:
            return size
    return 0
