"""A daemon under a constant load for a long time, with injected faults: does it grow?

python -m tests.evidence.soak --minutes 60 [--rate 400] [--leak]

200 devices publish ``rate`` samples a second together to a real broker.  About once a minute the broker is restarted or
frozen, the daemon is frozen so that the broker's queue fills, invalid messages or messages of 60 kB arrive, the
configuration is reloaded, or a client requests the list of streams.  Memory, threads and
open files of the daemon are sampled every two seconds; received samples are compared with outputs.  With ``--leak`` the
daemon keeps all batches, and the check must find that.  Exit code 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.kill.life import Life
from tests.kill.runs import versions
from tests.support.brokers import Broker
from tests.support.daemons import BEGIN_S, CHANNELS, mqtt_config, pump_records
from tests.support.waiting import wait_for

_DEVICES = 200
_BULK_MESSAGES, _BULK_RECORDS = 40, 600
_LOOK_S = 2.0
_FAULT_S = 60.0
_MOST_GROWTH_MIB = 5.0
_WARM_UP = 0.4  # of all measurements: each fault has occurred; not less than a minute where there is one
_EDGE = 10  # measurements at either end that are compared
_GARBAGE = (b"", b"{", b"\xff\xff", b"[]", b'{"ts": "x"}', b"9" * 5000)
_FILE = """
[[sink]]
type = "file"
path = "rows.csv.gz"
rotate_bytes = 1000000
max_files = 3
"""


@dataclass(frozen=True)
class Look:
    """The resources of a process at one time."""

    second: float
    rss_mib: float
    threads: int
    files: int


@dataclass
class Counts:
    """Samples sent, valid ones among them, and outputs received, each counted once."""

    sent: int = 0
    good: int = 0
    heard: int = 0
    repeated: int = 0


def look_at(pid: int, second: float) -> Look:
    """Measure a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    fields = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", text, re.MULTILINE))
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return Look(second, int(fields["VmRSS"]) / 1024, int(fields["Threads"]), files)


def settled(looks: Sequence[Look]) -> Sequence[Look]:
    """The measurements after the warm-up."""
    longest = max(looks[-1].second * _WARM_UP, min(60.0, looks[-1].second / 2))
    return [one for one in looks if one.second >= longest]


def growth(looks: Sequence[Look]) -> list[str]:
    """The resources that have grown after the warm-up, a sentence each."""
    kept = settled(looks)
    if len(kept) < 2 * _EDGE:
        return [f"too short: {len(kept)} looks behind the warm-up, expected {2 * _EDGE}"]
    problems = []
    grown = _slope(kept) * (kept[-1].second - kept[0].second)
    if grown >= _MOST_GROWTH_MIB:
        problems.append(f"memory grew by {grown:.1f} MiB, expected less than {_MOST_GROWTH_MIB} MiB")
    for name in ("threads", "files"):
        first, last = (np.median([getattr(one, name) for one in part]) for part in (kept[:_EDGE], kept[-_EDGE:]))
        if first != last:
            problems.append(f"{name}: {first:.0f} at the beginning, {last:.0f} at the end")
    return problems


def _slope(looks: Sequence[Look]) -> float:
    """MiB a second, by least squares."""
    return float(np.polyfit([one.second for one in looks], [one.rss_mib for one in looks], 1)[0])


class Load:
    """Devices that publish at a constant rate, on a connection that reconnects when it is lost."""

    def __init__(self, port: int, counts: Counts, rate: float) -> None:
        self._counts, self._rate, self._ended = counts, rate, threading.Event()
        self._recorded = list(pump_records(_DEVICES, 1000).values())
        self._bulk_s = BEGIN_S
        self._lock = threading.Lock()
        self._client = Client(CallbackAPIVersion.VERSION2, "devices", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        self._client.loop_start()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        begin, number = time.monotonic(), 0
        while not self._ended.is_set():
            due = int((time.monotonic() - begin) * self._rate)
            for n in range(number, due):
                device, second = n % _DEVICES, n // _DEVICES
                self._publish(f"dev-{device}", self._record(device, BEGIN_S + second))
            self._counts.good += due - number
            number = due
            time.sleep(0.002)

    def _record(self, device: int, second: int) -> bytes:
        row = self._recorded[device][second % len(self._recorded[device])]
        return json.dumps({"ts": second, **{name: row[name] for name in CHANNELS}}).encode()

    def bulk(self) -> None:
        """Messages of many records, from one device."""
        for _ in range(_BULK_MESSAGES):
            seconds = range(self._bulk_s, self._bulk_s + _BULK_RECORDS)
            self._publish("bulk", b"\n".join(self._record(0, second) for second in seconds), _BULK_RECORDS)
            self._bulk_s += _BULK_RECORDS
            self._counts.good += _BULK_RECORDS

    def garbage(self, rng: random.Random) -> None:
        """An invalid message."""
        for _ in range(100):
            self._publish(f"dev-{rng.randrange(_DEVICES)}", rng.choice(_GARBAGE))

    def _publish(self, stream: str, payload: bytes, records: int = 1) -> None:
        with self._lock:
            self._counts.sent += records
            self._last = self._client.publish(f"sensors/{stream}/data", payload, 1)

    def close(self) -> None:
        """Stop sending, and disconnect when the broker has all messages."""
        self._ended.set()
        self._thread.join()
        self._last.wait_for_publish(120)
        self._client.disconnect()
        self._client.loop_stop()


class Ear:
    """Receives all outputs, over restarts of the broker; each output is counted once."""

    def __init__(self, port: int, counts: Counts) -> None:
        self._counts, self._newest = counts, dict[str, str]()
        self._client = Client(CallbackAPIVersion.VERSION2, "ear", protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_message = self._hear
        self._client.on_connect = lambda client, *_: client.subscribe("stream_gru/+/prediction", 1)
        self._client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        self._client.connect("127.0.0.1", port, clean_start=False, properties=properties)
        self._client.loop_start()

    def _hear(self, _: Client, __: object, message: MQTTMessage) -> None:
        (name,) = [value for key, value in message.properties.UserProperty if key == "id"]  # type: ignore[union-attr]
        stream, _, when = name.rpartition("/")
        if when > self._newest.get(stream, ""):
            self._newest[stream] = when
            self._counts.heard += 1
        else:
            self._counts.repeated += 1

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


class Trouble:
    """The injected faults, one after the other."""

    def __init__(self, broker: Broker, life: Life, load: Load, rng: random.Random) -> None:
        self._broker, self._life, self._load, self._rng = broker, life, load, rng
        self.done: Counter[str] = Counter()
        self._kinds = (self.restart, self.freeze, self.stall, self.garbage, self.bulk, self.reload, self.ask)

    def next(self) -> None:
        """Inject the next one."""
        kind = self._kinds[self.done.total() % len(self._kinds)]
        kind()
        self.done[kind.__name__] += 1

    def restart(self) -> None:
        """Restart the broker."""
        self._broker.stop()
        time.sleep(self._rng.uniform(0.5, 3.0))
        self._broker.start()

    def freeze(self) -> None:
        """Freeze the broker."""
        self._broker.freeze()
        time.sleep(self._rng.uniform(1.0, 5.0))
        self._broker.thaw()

    def stall(self) -> None:
        """Freeze the daemon, so that the broker's queue fills."""
        os.kill(self._life.pid, signal.SIGSTOP)
        time.sleep(self._rng.uniform(5.0, 15.0))
        os.kill(self._life.pid, signal.SIGCONT)

    def bulk(self) -> None:
        """A device sends all that it has collected."""
        self._load.bulk()

    def garbage(self) -> None:
        """Devices send invalid messages."""
        self._load.garbage(self._rng)

    def reload(self) -> None:
        """Reload the configuration."""
        self._life.hang_up()

    def ask(self) -> None:
        """Request the list of streams."""
        found = re.search(r"metrics at (\S+)/metrics", self._life.output())
        assert found is not None
        with urllib.request.urlopen(f"{found[1]}/api/v1/streams", timeout=20) as answer:  # noqa: S310 - loopback
            json.loads(answer.read())


def soak(folder: Path, minutes: float, *, seed: int, leak: bool, rate: float) -> list[str]:
    """Run, print the measurements, and return the failed checks."""
    counts, rng = Counts(), random.Random(seed)
    config = folder / "gateway.toml"
    with Broker(folder, lines=["max_inflight_messages 1000", "set_tcp_nodelay true"]) as broker:
        config.write_text(mqtt_config(broker.url, run='state_dir = "state"').replace('"json"', '"jsonl"') + _FILE)
        life = Life(config, folder / "daemon.log", *(["--without", "release"] if leak else []), more=["--json"])
        try:
            wait_for(lambda: "subscribed to" in life.output(), what="the daemon", timeout_s=60)
            ear, load = Ear(broker.port, counts), Load(broker.port, counts, rate)
            looks, done = _watch(life, Trouble(broker, life, load, rng), 60.0 * minutes)
            load.close()
            _await_quiet(counts)
            code = life.stop()
            problems = [] if code == 0 else [f"expected exit code 0, got {code}"]
            _await_quiet(counts)
            ear.close()
            problems += [*life.error_lines(), *unbalanced(json.loads(life.output().splitlines()[-1]), counts)]
        finally:
            life.close()
    _print(looks, counts, done)
    return [*problems, *growth(looks)]


def _watch(life: Life, trouble: Trouble, seconds: float) -> tuple[list[Look], Counter[str]]:
    """Measure the daemon regularly, and inject faults; none at the very end, when it must be as at the start."""
    begin = time.monotonic()
    looks: list[Look] = []
    fault_s = min(_FAULT_S, seconds / 20)
    fault = fault_s / 4
    trouble.ask()
    while (now := time.monotonic() - begin) < seconds:
        assert life.wait(_LOOK_S) is None, life.output()[-2000:]
        if now >= fault and now < seconds - 3 * _LOOK_S * _EDGE / 2:
            trouble.next()
            fault = now + fault_s
        looks.append(look_at(life.pid, now))
    return looks, trouble.done


def _await_quiet(counts: Counts, timeout_s: float = 120.0) -> None:
    """Wait until no more outputs arrive."""
    end = time.monotonic() + timeout_s
    before = -1
    while time.monotonic() < end and counts.heard != before:
        before = counts.heard
        time.sleep(3.0)


def unbalanced(summary: dict[str, Any], counts: Counts) -> list[str]:
    """Failed sums: received = applied + dropped, outputs = applied, applied + late = valid samples sent.

    Paho, publishing while it reconnects, sends some samples before older ones, which are then late.
    """
    received, applied, dropped = summary["samples"], summary["applied"], sum(summary["dropped"].values())
    problems = [] if received == applied + dropped else [f"received {received}, applied {applied}, dropped {dropped}"]
    if received < counts.sent:
        problems.append(f"sent {counts.sent}, received {received}")
    if applied != counts.heard or applied + summary["dropped"].get("late", 0) != counts.good:
        problems.append(
            f"good samples {counts.good}, applied {applied}, outputs {counts.heard}, dropped {summary['dropped']}"
        )
    return problems


def _print(looks: Sequence[Look], counts: Counts, done: Counter[str]) -> None:
    kept = settled(looks)
    hourly = _slope(kept) * 3600
    print(f"{counts}; {dict(done)}")  # noqa: T201 - a command of its own
    for one in (looks[0], kept[0], kept[len(kept) // 2], kept[-1]):
        print(f"  at {one.second:6.0f} s: {one.rss_mib:.1f} MiB, {one.threads} threads, {one.files} files")  # noqa: T201
    print(f"  memory: {hourly:+.2f} MiB an hour behind the warm-up")  # noqa: T201


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.evidence.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--leak", action="store_true", help="a daemon that keeps all batches: must be detected")
    parser.add_argument("--rate", type=float, default=400.0, help="samples a second")
    given = parser.parse_args()
    print(f"soak of {given.minutes:g} minutes, {given.rate:g} samples/s, seed {given.seed}, {versions()}", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        problems = soak(Path(folder), given.minutes, seed=given.seed, leak=given.leak, rate=given.rate)
    print(*(f"NOT HELD: {text}" for text in problems), sep="\n")  # noqa: T201
    if given.leak:
        found = any("memory grew" in text for text in problems)
        print(f"the leak was {'detected' if found else 'NOT DETECTED'}")  # noqa: T201
        return 0 if found else 1
    print("nothing grew, nothing is missing" if not problems else "see above")  # noqa: T201
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
