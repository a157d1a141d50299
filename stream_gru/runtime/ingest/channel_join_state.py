"""The state of one stream in the channel join, and its stored form."""

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


class Window(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The values of one period and their times, by channel; NaN and `NEVER` where a channel has none.

    ``reported``: how many channels have a value.
    """

    time_ns: Int64
    values: _Values
    times: _Times
    reported: int = 0
    device_seq: Int64 = -1
    label: str = ""
    reset: bool = False
    arrival_ns: Int64 = 0


@dataclass(slots=True)
class JoinState:
    """The state of one stream.

    ``last_value, last_ns``  last emitted value of each channel and its time
    ``pending``              windows that wait for channels, by their time
    ``oldest``               time of the first pending window
    ``newest``               largest event time
    ``emitted, reset_at``    last emitted window; last emitted window with a reset flag
    ``episode``              key of the episode, -1 for none
    ``reset``                a reset flag that waits for the next window
    """

    last_value: list[float]
    last_ns: list[int]
    pending: dict[int, Window] = field(default_factory=dict)
    oldest: int = -NEVER
    newest: int = NEVER
    emitted: int = NEVER
    episode: int = -1
    reset: bool = False
    reset_at: int = NEVER


class _Form(Struct, array_like=True, forbid_unknown_fields=True):
    """A `JoinState` as stored: windows in time order, without derived fields."""

    period_ns: Int64
    last_value: _Values
    last_ns: _Times
    pending: Annotated[list[Window], Meta(max_length=MOST_PENDING)]
    newest: Int64
    emitted: Int64
    episode: Int64
    reset: bool
    reset_at: Int64


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
                record.last_value,
                record.last_ns,
                pending,
                record.newest,
                record.emitted,
                record.episode,
                record.reset,
                record.reset_at,
            )
        )

    def _load(self, key: str, data: bytes) -> JoinState:
        """Raises IncompatibleStateError for a stream of other channels or another period, StateError for damage."""
        owner = f"the channel join, {key}"
        form = decode(data, _Form, owner)
        lists = [
            form.last_value,
            form.last_ns,
            *(one for window in form.pending for one in (window.values, window.times)),
        ]
        if form.period_ns != self._period_ns or any(len(one) != self._channels for one in lists):
            raise IncompatibleStateError(
                f"stored state of {owner}: expected {self._channels} channels every {self._period_ns} ns, "
                f"got {len(form.last_value)} every {form.period_ns} ns"
            )
        times = [window.time_ns for window in form.pending]
        if times != sorted({time for time in times if time > form.emitted}):
            raise corrupt_state(owner, "expected windows in time order, after the last emitted one")
        if not all(map(_is_float32, (value for one in lists[::2] for value in one))):
            raise corrupt_state(owner, "expected float32 values")
        return JoinState(
            form.last_value,
            form.last_ns,
            dict(zip(times, form.pending, strict=True)),
            min(times, default=-NEVER),
            form.newest,
            form.emitted,
            form.episode,
            form.reset,
            form.reset_at,
        )


def _is_float32(value: float) -> bool:
    return abs(value) <= _LARGEST or not math.isfinite(value)
