"""Live simulated devices: on a pseudo-terminal, like a serial port, or publishing to an MQTT broker.

A recording is repeated; only its values are used, times are those of the wall clock.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
import tty
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from termios import FIONREAD
from types import TracebackType
from typing import Protocol, Self
from urllib.parse import urlsplit

import numpy as np
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from stream_gru.examples.simulators.pump import pump_parameters, simulate_pump
from stream_gru.examples.simulators.recording import NS_PER_S, Recording, simulate_sine, sine_phases
from stream_gru.examples.simulators.write import START_NS

_LATE_S = 1.0
_DRAIN_S = 2.0
_RESPONSE_TIMEOUT_S = 10.0
_MAX_QUEUED = 10_000


@dataclass(frozen=True)
class Sample:
    """One row as a device sends it: ``time_ns`` since 1970, ``seq`` counts from 0, ``values`` by channel."""

    stream: str
    stream_field: str
    seq: int
    time_ns: int
    values: dict[str, float]
    label: str | None = None


class SampleOutput(Protocol):
    """Destination of samples."""

    def send(self, sample: Sample) -> None:
        """Send one sample, without waiting for a reader."""
        ...


def clean_pumps(hours: float, seed: int, pumps: int, first: int = 1) -> list[Recording]:
    """The pumps of `stream_gru.examples.simulators.write.pump_recordings` without data faults."""
    numbers = range(first, first + pumps)
    parameters = pump_parameters(first + pumps - 1, seed)
    return [simulate_pump(parameters[k - 1], hours, np.random.default_rng([seed, k, 1]), START_NS) for k in numbers]


def clean_sines(hours: float, seed: int, streams: int) -> list[Recording]:
    """The sines of `stream_gru.examples.simulators.write.write_sines`."""
    phases = enumerate(sine_phases(streams), start=1)
    return [simulate_sine(f"sine-{k}", phase, hours, np.random.default_rng([seed, k]), START_NS) for k, phase in phases]


def play(
    recordings: Sequence[Recording],
    output: SampleOutput,
    *,
    rate_hz: float | None = None,
    count: int | None = None,
    labels: bool = False,
    clock: Callable[[], float] = time.monotonic,
    wall_ns: Callable[[], int] = time.time_ns,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Send ``rate_hz`` samples per second of each recording, by default as recorded; ``count`` of each, or forever.

    After a suspend of the machine, samples continue without catching up.
    """
    period_s = 1.0 / rate_hz if rate_hz else _period_s(recordings[0])
    seq, due = 0, clock()
    while count is None or seq < count:
        sleep(max(0.0, due - clock()))
        time_ns = wall_ns()
        for recording in recordings:
            output.send(sample_of(recording, seq, time_ns, labels))
        seq += 1
        due = max(due + period_s, clock() - _LATE_S)


def sample_of(recording: Recording, seq: int, time_ns: int, labels: bool = False) -> Sample:
    """The sample number ``seq``, from the recording repeated without end."""
    row = seq % len(recording)
    pairs = zip(recording.channels, recording.values[row].tolist(), recording.decimals, strict=True)
    label = str(recording.labels[row]) if labels and recording.labels is not None else None
    values = {name: round(value, decimals) + 0.0 for name, value, decimals in pairs}
    return Sample(recording.stream_id, recording.stream_column, seq, time_ns, values, label)


def record_of(sample: Sample, named: bool = False) -> dict[str, float | str]:
    """The fields to send: ``ts`` in seconds since 1970, with ``named`` the stream, ``seq``, channels, label if any."""
    record: dict[str, float | str] = {"ts": sample.time_ns // 1_000_000 / 1000}
    if named:
        record[sample.stream_field] = sample.stream
    record |= {"seq": sample.seq, **sample.values}
    if sample.label is not None:
        record["mode"] = sample.label
    return record


def json_text(sample: Sample, named: bool = False) -> str:
    """The record as a JSON object."""
    return json.dumps(record_of(sample, named), separators=(",", ":"))


def csv_text(sample: Sample, named: bool = False) -> str:
    """The values of the record as CSV, in its order."""
    return ",".join(map(str, record_of(sample, named).values()))


def plotter_text(sample: Sample, named: bool = False) -> str:
    """The format of the Arduino Serial Plotter: labelled numbers, without time or stream."""
    return ",".join(f"{name}:{value}" for name, value in {"seq": sample.seq, **sample.values}.items())


LINES: dict[str, Callable[[Sample, bool], str]] = {"jsonl": json_text, "csv": csv_text, "plotter": plotter_text}


class PseudoTerminal:
    """A pseudo-terminal; `path` is the device to open as a serial port, ``link`` a symbolic link to it.

    Like a device it does not wait for a reader: a line that does not fit its buffer is lost and counted in ``lost``.
    Raises FileExistsError when ``link`` exists and is not a symbolic link.
    """

    def __init__(self, form: str = "jsonl", *, named: bool = False, link: Path | None = None) -> None:
        self._text, self._named, self._link = LINES[form], named, link
        self._rest = b""
        self.lost = 0
        if link is not None and link.exists() and not link.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(link))
        # Keep the far end open, so that readers may close and reopen it.
        self._near, self._far = os.openpty()
        tty.setraw(self._far)
        os.set_blocking(self._near, False)
        self.path = os.ttyname(self._far)
        if link is not None:
            new_link = link.with_name(f"{link.name}.{os.getpid()}")
            new_link.symlink_to(self.path)
            new_link.replace(link)

    def send(self, sample: Sample) -> None:
        """Write one line, completely or not at all."""
        self._push()  # the rest of the previous line
        if self._rest:
            self.lost += 1
            return
        line = f"{self._text(sample, self._named)}\n".encode()
        self._rest = line
        self._push()
        if self._rest is line:
            self.lost += 1
            self._rest = b""

    def drain(self, timeout_s: float = _DRAIN_S) -> None:
        """Wait until everything is read, at most ``timeout_s``."""
        end = time.monotonic() + timeout_s
        self._push()
        while (self._rest or self._unread()) and time.monotonic() < end:
            time.sleep(0.01)
            self._push()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._link is not None:
            with suppress(OSError):
                if str(self._link.readlink()) == self.path:  # another process may have replaced it
                    self._link.unlink()
        os.close(self._near)
        os.close(self._far)

    def _push(self) -> None:
        """Write as much of the rest as fits the buffer."""
        with suppress(BlockingIOError):
            while self._rest:
                self._rest = self._rest[os.write(self._near, self._rest) :]

    def _unread(self) -> int:
        waiting = array("i", [0])
        ioctl(self._far, FIONREAD, waiting)
        return waiting[0]


class MqttPublisher:
    """Publishes to a broker with QoS 1; in ``topic`` the stream's name replaces ``{stream}``.

    Raises OSError when the broker at ``url`` (``mqtt://host[:1883]``, ``mqtts://host[:8883]``) is unreachable.
    While disconnected, up to 10,000 samples are queued; more, and samples it rejects, are lost and counted in ``lost``.
    """

    def __init__(self, url: str, topic: str) -> None:
        self._url, self._topic = url, topic
        self._changed = threading.Condition()
        self._connect_result = ""
        self._sent = self._acknowledged = 0
        self.lost = 0
        where = urlsplit(url)
        self._client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.max_queued_messages_set(_MAX_QUEUED)
        self._client.reconnect_delay_set(1, 10)
        self._client.on_connect = self._on_connect
        self._client.on_publish = self._on_publish
        if where.scheme == "mqtts":
            self._client.tls_set()
        try:
            self._client.connect(where.hostname or "", where.port or (8883 if where.scheme == "mqtts" else 1883))
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), url) from error

    def send(self, sample: Sample) -> None:
        """Publish one sample."""
        topic = self._topic.replace("{stream}", sample.stream)
        info = self._client.publish(topic, json_text(sample), qos=1)
        if info.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE:
            self.lost += 1
        else:
            self._sent += 1

    def drain(self, timeout_s: float = _RESPONSE_TIMEOUT_S) -> None:
        """Wait until the broker has acknowledged everything.  Raises TimeoutError after ``timeout_s`` without any."""
        with self._changed:
            while self._acknowledged < self._sent:
                before = self._acknowledged
                if not self._changed.wait(timeout_s) and self._acknowledged == before:
                    raise TimeoutError(
                        errno.ETIMEDOUT, f"{self._sent - before} samples were not acknowledged", self._url
                    )

    def __enter__(self) -> Self:
        self._client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: bool(self._connect_result), _RESPONSE_TIMEOUT_S)
        if self._connect_result != "Success":
            self.close()
            raise ConnectionError(errno.ECONNREFUSED, self._connect_result or "the broker did not respond", self._url)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect and stop the thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, _client: Client, _data: object, _flags: object, reason: ReasonCode, _p: object) -> None:
        with self._changed:
            self._connect_result = str(reason)
            self._changed.notify_all()

    def _on_publish(self, _client: Client, _data: object, _mid: int, reason: ReasonCode, _properties: object) -> None:
        with self._changed:
            self._acknowledged += 1
            self.lost += reason.is_failure
            self._changed.notify_all()


def _period_s(recording: Recording) -> float:
    """Seconds between rows."""
    if len(recording) < 2:
        return 1.0
    return float(recording.time_ns[1] - recording.time_ns[0]) / NS_PER_S
