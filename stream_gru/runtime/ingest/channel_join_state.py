"""What assembly remembers of one stream, and its form as bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta, Struct

from stream_gru.core.errors import IncompatibleStateError
from stream_gru.core.keyed_state import Int64, KeyedState, corrupt_state, decode, encode

NEVER = -(2**63)
MOST_PENDING = 64
_MOST_CHANNELS = 65_536
_LARGEST = 3.4028234663852886e38  # of float32

_Values = Annotated[list[float], Meta(max_length=_MOST_CHANNELS)]
_Times = Annotated[list[Int64], Meta(max_length=_MOST_CHANNELS)]


class Tick(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """What was reported in one period: a value and its time for each channel, NaN and `NEVER` for none.

    ``reported``: how many channels were.
    """

    time_ns: Int64
    values: _Values
    times: _Times
    reported: int = 0
    seq: Int64 = -1
    label: str = ""
    reset: bool = False
    arrival_ns: Int64 = 0


@dataclass(slots=True)
class JoinState:
    """All that is remembered of one stream.

    ``held, held_ns``  last emitted value of each channel and its time   ``pending``  ticks that wait, by their time
    ``oldest``         time of the first of them     ``newest``  largest event time    ``emitted``  last emitted tick
    ``sequence``       key of the sequence, -1 for none; ``reset`` a flag that waits for the next tick
    ``flagged``        last emitted tick that had one
    """

    held: list[float]
    held_ns: list[int]
    pending: dict[int, Tick] = field(default_factory=dict)
    oldest: int = -NEVER
    newest: int = NEVER
    emitted: int = NEVER
    sequence: int = -1
    reset: bool = False
    flagged: int = NEVER


class _Form(Struct, array_like=True, forbid_unknown_fields=True):
    """A `JoinState` as it is stored: the ticks in the order of their times, without what follows from the rest."""

    period_ns: Int64
    held: _Values
    held_ns: _Times
    pending: Annotated[list[Tick], Meta(max_length=MOST_PENDING)]
    newest: Int64
    emitted: Int64
    sequence: Int64
    reset: bool
    flagged: Int64


class JoinStates(KeyedState[JoinState]):
    """The states of all streams; ``channels`` every ``period_ns``."""

    def __init__(self, channels: int, period_ns: int) -> None:
        super().__init__(_Form, "the channel join")
        self._channels, self._period_ns = channels, period_ns

    def _dump(self, record: JoinState) -> bytes:
        pending = [record.pending[time_ns] for time_ns in sorted(record.pending)]
        return encode(
            _Form(
                self._period_ns,
                record.held,
                record.held_ns,
                pending,
                record.newest,
                record.emitted,
                record.sequence,
                record.reset,
                record.flagged,
            )
        )

    def _load(self, key: str, data: bytes) -> JoinState:
        """Raises IncompatibleStateError for a stream of other channels or another period, StateError for damage."""
        owner = f"the channel join, {key}"
        form = decode(data, _Form, owner)
        lists = [form.held, form.held_ns, *(one for tick in form.pending for one in (tick.values, tick.times))]
        if form.period_ns != self._period_ns or any(len(one) != self._channels for one in lists):
            raise IncompatibleStateError(
                f"stored state of {owner}: expected {self._channels} channels every {self._period_ns} ns, "
                f"got {len(form.held)} every {form.period_ns} ns"
            )
        times = [tick.time_ns for tick in form.pending]
        if times != sorted({time for time in times if time > form.emitted}):
            raise corrupt_state(owner, "expected ticks in order, after the last one that was emitted")
        if not all(map(_is_float32, (value for one in lists[::2] for value in one))):
            raise corrupt_state(owner, "expected values of float32")
        return JoinState(
            form.held,
            form.held_ns,
            dict(zip(times, form.pending, strict=True)),
            min(times, default=-NEVER),
            form.newest,
            form.emitted,
            form.sequence,
            form.reset,
            form.flagged,
        )


def _is_float32(value: float) -> bool:
    return abs(value) <= _LARGEST or not math.isfinite(value)
