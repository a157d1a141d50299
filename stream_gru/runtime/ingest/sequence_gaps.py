"""Counts missing samples by the devices' own sequence numbers."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from stream_gru.core.keyed_state import Int64, KeyedState
from stream_gru.core.types import I64, SampleBatch

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
