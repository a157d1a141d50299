"""What a device sends: samples of many streams with typical field faults, reproducible by seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.daemons import BEGIN_S, CHANNELS, pump_records

LAST = "last"  # the stream of the last message: once it is processed, all are
_RECORDED = 1000
_BAD = (
    b"",
    b'{"ts": 17723',
    b'{"ts": "soon", "flow": 1.0}',
    b'{"flow": 1.0, "pressure": 2.0}',
    b'{"ts": 1772323200, "flow": "much", "pressure": 2.0, "current": 1.0, "vibration": 1.0}',
    b"\xff\xfe{}",
    b"[1, 2, 3]",
)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a device; ``seq`` is its counter, -1 in an invalid message."""

    stream: str
    payload: bytes
    seq: int = -1


class _Device:
    """One stream: its clock, its counter, and recorded values."""

    def __init__(self, stream: str, values: list[dict[str, float]]) -> None:
        self.stream, self._values = stream, values
        self.time_s, self.seq = float(BEGIN_S), 0
        self.sent: list[Message] = []

    def next(self, step_s: float = 1.0, **more: object) -> Message:
        """The next sample, ``step_s`` after the last one."""
        self.time_s, self.seq = round(self.time_s + step_s, 3), self.seq + 1
        message = self._message(self.time_s, **more)
        # A resent sample from before a reset or another clock does not count as a repetition: it would be applied.
        self.sent = [] if more or step_s < 0 else [*self.sent[-20:], message]
        return message

    def late(self, by_s: float) -> Message:
        """A sample older than the newest one, never sent before."""
        return self._message(round(self.time_s - by_s, 3))

    def _message(self, time_s: float, **more: object) -> Message:
        values = self._values[self.seq % len(self._values)]
        record = {"ts": time_s, "seq": self.seq, **{name: values[name] for name in CHANNELS}, **more}
        return Message(self.stream, json.dumps(record).encode(), self.seq)


def field_messages(count: int, streams: int, seed: int) -> Iterator[Message]:
    """Return ``count`` messages; the last one is of the stream `LAST` and always applied.

    Streams alternate in turn, in bursts, and at random, some of them rarely.  Event times of one stream are unique
    except in a sample sent twice, so that ids stay unique also where a clock is set back.
    """
    rng = random.Random(seed)
    devices = _devices(streams)
    weights = [1.0 / (1 + number % 7) for number in range(streams)]
    set_back = sent = 0
    while sent < count - 1:
        for device in _burst(rng, devices, weights):
            if sent == count - 1:
                break
            odd = rng.random()
            if odd < 0.001:  # with another fraction of a second each time
                set_back += 1
                yield device.next(-7200.0 - set_back % 1000 * 0.001)
            else:
                yield _usual(rng, device, odd)
            sent += 1
    yield _Device(LAST, [dict.fromkeys(CHANNELS, 1.0)]).next()


def _devices(streams: int) -> list[_Device]:
    recorded = pump_records(streams, _RECORDED)
    return [_Device(stream, values) for stream, values in recorded.items()]


def _burst(rng: random.Random, devices: list[_Device], weights: list[float]) -> list[_Device]:
    kind = rng.random()
    if kind < 0.2:
        return devices
    if kind < 0.4:
        return [rng.choice(devices)] * rng.randint(2, 30)
    return rng.choices(devices, weights, k=rng.randint(1, 40))


def _usual(rng: random.Random, device: _Device, odd: float) -> Message:
    if odd < 0.02 and device.sent:
        return rng.choice(device.sent)  # a repetition
    if odd < 0.03:
        return device.late(rng.uniform(0.1, 30.0))
    if odd < 0.05:
        return Message(device.stream, rng.choice(_BAD))
    if odd < 0.06:
        return device.next(reset=True)
    if odd < 0.09:
        return device.next(float(rng.randint(2, 5)))  # a gap that is filled
    if odd < 0.093:
        return device.next(float(rng.randint(20, 400)))  # one that stays open
    if odd < 0.1:  # many records in one message
        return Message(device.stream, b"\n".join(device.next().payload for _ in range(rng.randint(2, 60))))
    return device.next()


def plain_messages(count: int, streams: int, seed: int) -> Iterator[Message]:
    """Return ``count`` messages, each applied once at any time; the last one is of the stream `LAST`."""
    rng = random.Random(seed)
    devices = _devices(streams)
    for _ in range(count - 1):
        yield rng.choice(devices).next()
    yield _Device(LAST, [dict.fromkeys(CHANNELS, 1.0)]).next()
