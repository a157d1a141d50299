"""Clocks of devices that count from their start: device time becomes time since the epoch.

Decision: a stream has one anchor, the arrival of its first sample, and keeps it: the distances between samples are the
device's own, whatever the way to us does to them.  A new anchor is taken only when the device was restarted, or when
event and arrival have come apart by more than a minute: it slept, its clock runs fast or slow, or ours was set.

What comes out depends on the rows and their arrival, never on how they are batched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from stream_gru.core.keyed_state import KeyedState
from stream_gru.core.types import I64, NS_PER_S, DropReason, SampleBatch

_DISORDER_NS = NS_PER_S  # rows this much older than the newest are late, not of a restarted device
_APART_NS = 60 * NS_PER_S
_LONGEST_NS = 2**62  # sums of two such numbers fit into 64 bits
_Moment = Annotated[int, Meta(ge=-(2**62) - 2**61, le=2**62 + 2**61)]  # no event is far from an arrival


class _ClockOffset(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """What is known of a stream, in nanoseconds: ``event = device + offset``."""

    offset: _Moment
    device: _Moment  # the newest device time since the anchor, and the event that it became
    event: _Moment


class DeviceClock:
    """Turns device time into event time, stream by stream; a counter begins again after ``wrap_ns``.

    ``restarts`` counts devices that began anew, ``apart`` anchors taken because event and arrival had come apart.  Of
    more than ``max_streams`` streams nothing is remembered: the time of arrival counts.  ``state`` has the anchors.
    """

    def __init__(self, wrap_ns: int, max_streams: int = 10_000) -> None:
        self._wrap_ns, self.max_streams = wrap_ns, max_streams
        self.state: KeyedState[_ClockOffset] = KeyedState(_ClockOffset, "device clocks")
        self.restarts = 0
        self.apart = 0

    def apply(self, batch: SampleBatch) -> SampleBatch:
        """Return ``batch`` with ``time_ns`` since the epoch in place of nanoseconds since the device's start.

        A row without an arrival, or of a time that no counter has, cannot be placed: it is rejected as TIMESTAMP.
        """
        if not len(batch):
            return batch
        arrival = np.zeros(len(batch), np.int64) if batch.arrival_ns is None else batch.arrival_ns
        usable = (arrival > 0) & (arrival < _LONGEST_NS) & (batch.time_ns >= 0) & (batch.time_ns < _LONGEST_NS)
        if not usable.all():
            batch, arrival = batch.rejecting(~usable, DropReason.TIMESTAMP), arrival[usable]
        time_ns = np.empty_like(batch.time_ns)
        codes, first = np.unique(batch.stream_index, return_index=True)
        for code in codes[np.argsort(first)].tolist():  # in the order of arrival: it decides who is remembered
            rows = np.flatnonzero(batch.stream_index == code)
            time_ns[rows] = self._events(batch.stream_names[code], batch.time_ns[rows], arrival[rows])
        return replace(batch, time_ns=time_ns)

    def _events(self, stream: str, device: I64, arrival: I64) -> I64:
        """Event times of rows of one stream."""
        anchor = self.state.get(stream)
        if anchor is None:
            if len(self.state) >= self.max_streams:
                return arrival
            anchor = self.state.put(stream, _ClockOffset(int(arrival[0] - device[0]), int(device[0]), int(arrival[0])))
        self.state.touch(stream)
        events = device + anchor.offset
        onwards = device[0] >= anchor.device and bool(np.all(device[1:] >= device[:-1]))
        if onwards and bool(np.all(np.abs(arrival - events) <= _APART_NS)):
            anchor.device, anchor.event = int(device[-1]), int(events[-1])
            return events
        pairs = zip(device.tolist(), arrival.tolist(), strict=True)
        return np.array([self._event(anchor, *pair) for pair in pairs], np.int64)

    def _event(self, anchor: _ClockOffset, device: int, arrival: int) -> int:
        """Event time of one row, with whatever it tells of the clock."""
        if device < anchor.device:
            late, turned = device + anchor.offset, device + anchor.offset + self._wrap_ns
            in_disorder = anchor.device - device <= _DISORDER_NS and abs(arrival - late) <= _APART_NS
            if in_disorder and abs(arrival - late) <= abs(arrival - turned):
                return late
            if abs(arrival - turned) > _APART_NS:
                self.restarts += 1
                return _anchored(anchor, device, arrival)
            anchor.offset += self._wrap_ns
        event = device + anchor.offset
        if abs(arrival - event) > _APART_NS:
            self.apart += 1
            return _anchored(anchor, device, arrival)
        anchor.device, anchor.event = device, event
        return event


def _anchored(anchor: _ClockOffset, device: int, arrival: int) -> int:
    """Take a new anchor and return the event, which is later than all before it."""
    event = max(arrival, anchor.event + 1)
    anchor.offset, anchor.device, anchor.event = event - device, device, event
    return event
