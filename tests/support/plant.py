"""A broker, a device and a daemon with a store between two topics: the test bed for faults."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path

from tests.support.brokers import Broker, Subscriber
from tests.support.daemons import CHANNELS, Running, pump_records
from tests.support.paths import BUNDLE, ROOT
from tests.support.waiting import wait_for

Records = Mapping[str, Sequence[Mapping[str, object]]]
# As deploy/mosquitto; but it saves its state only on a signal or at its end.
_BROKER = ("max_inflight_messages 1000", "set_tcp_nodelay true", "autosave_interval 3600")
_CONFIG = """
[run]
bundle = "{bundle}"
state_dir = "{folder}/state"
commit_interval_s = 0.2

[[broker]]
url = "{url}"
client_id = "gateway"
keepalive_s = {keepalive_s}
reconnect_max_delay_s = 0.5

[[source]]
type = "mqtt"
topics = ["sensors/{{stream}}/data"]
format = "json"
max_payload_bytes = 1000

[source.input]
time = "ts"
time_unit = "s"
device_seq = "seq"

[[sink]]
type = "mqtt"

[[sink]]
type = "file"
path = "{folder}/out.jsonl"

[metrics]
listen = "127.0.0.1:0"
"""
_REPLAY = """
[run]
bundle = "{bundle}"

[input]
time_unit = "s"
device_seq = "seq"

[[source]]
type = "replay"
files = ["{folder}/records.jsonl"]

[[sink]]
type = "file"
path = "{folder}/replayed.jsonl"

[metrics]
enabled = false
"""


class Plant:
    """A broker in ``folder``, a device that publishes to it, and daemons that run one after the other."""

    def __init__(self, folder: Path, broker: Broker, samples: int) -> None:
        self.folder, self.broker = folder, broker
        recorded = pump_records(4, samples)
        self.records: Records = {
            stream: [{**row, "seq": number} for number, row in enumerate(rows)] for stream, rows in recorded.items()
        }

    def part(self, begin: int, end: int) -> Records:
        """Samples of all streams, from one number to before another."""
        return {stream: rows[begin:end] for stream, rows in self.records.items()}

    def without(self, begin: int, end: int) -> Records:
        """All samples but these."""
        return {stream: [*rows[:begin], *rows[end:]] for stream, rows in self.records.items()}

    def wipe(self) -> None:
        """Restart the broker with an empty state."""
        self.broker.kill()
        self.broker.forget()
        self.broker.start()

    def publish(self, records: Records, message_expiry_s: int = 0) -> None:
        """Publish all with QoS 1, streams in turn, and wait until the broker has them."""
        turns = zip_longest(*([(stream, row) for row in rows] for stream, rows in records.items()))
        in_turn = [one for turn in turns for one in turn if one is not None]
        with self.broker.client("device") as device:
            device.publish_all(
                [(f"sensors/{stream}/data", json.dumps(row)) for stream, row in in_turn], message_expiry_s
            )

    def daemon(self, url: str = "", keepalive_s: int = 30) -> Running:
        """A daemon that is not started."""
        path = self.folder / "gateway.toml"
        keys = {"bundle": BUNDLE, "folder": self.folder, "url": url or self.broker.url, "keepalive_s": keepalive_s}
        path.write_text(_CONFIG.format(**keys))
        return Running(path)

    def rows(self) -> list[bytes]:
        """All committed outputs, as far as they are visible."""
        path = self.folder / "out.jsonl"
        return path.read_bytes().splitlines() if path.exists() else []

    def wait_for_rows(self, number: int) -> None:
        """Wait until this many outputs are there."""
        wait_for(lambda: len(self.rows()) >= number, timeout_s=60, what=f"{number} outputs")

    def wait_for_last(self) -> None:
        """Wait until there is the output of the last sample of each stream."""
        last = {(stream, rows[-1]["seq"]) for stream, rows in self.records.items()}

        def outputs() -> set[tuple[str, float]]:
            rows = map(json.loads, self.rows())
            return {(row["stream"], row["seq"]) for row in rows}

        wait_for(lambda: last <= outputs(), timeout_s=60, what="the last output of each stream")

    def replayed(self, records: Records) -> dict[str, list[bytes]]:
        """The outputs of each stream, in order, when no more arrive."""
        with (self.folder / "records.jsonl").open("w") as file:
            for stream, rows in records.items():
                for row in rows:
                    values = {name: row[name] for name in (*CHANNELS, "seq")}
                    file.write(json.dumps({"time": row["ts"], "pump": stream, **values}) + "\n")
        config = self.folder / "replay.toml"
        config.write_text(_REPLAY.format(bundle=BUNDLE, folder=self.folder))
        command = [sys.executable, "-m", "stream_gru", "run", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return by_stream((self.folder / "replayed.jsonl").read_bytes().splitlines())

    def check(self, records: Records, heard: Subscriber | None = None) -> None:
        """Outputs are those of these samples, each once, in order; a subscriber received each at least once."""
        rows = self.rows()
        assert by_stream(rows) == self.replayed(records)
        if heard is not None:
            wait_for(lambda: len(heard.rows) >= len(rows), what="all outputs at the subscriber")
            assert by_stream(heard.rows) == by_stream(rows)
            assert all(len(payloads) == 1 for payloads in heard.ids.values())


@contextmanager
def open_plant(folder: Path, samples: int = 60, lines: Sequence[str] = (), **keys: object) -> Iterator[Plant]:
    """A running broker and its test bed."""
    with Broker(folder, lines=[*_BROKER, *lines], **keys) as broker:  # type: ignore[arg-type]
        yield Plant(folder, broker, samples)


@contextmanager
def subscriber(port: int) -> Iterator[Subscriber]:
    """A subscriber to the outputs."""
    one = Subscriber(port)
    try:
        yield one
    finally:
        one.close()
        one.client._reset_sockets()


def by_stream(rows: Iterable[bytes]) -> dict[str, list[bytes]]:
    """Rows of each stream, in order."""
    found: dict[str, list[bytes]] = {}
    for row in rows:
        found.setdefault(json.loads(row)["stream"], []).append(row)
    return found


def of_source(daemon: Running, name: str) -> float:
    """A metric of the one source."""
    value = daemon.metric(f'stream_gru_{name}{{source="mqtt"}}')
    assert value is not None, name
    return value


def of_sink(daemon: Running, name: str) -> float:
    """A metric of the sink to the broker."""
    value = daemon.metric(f'stream_gru_{name}{{sink="mqtt"}}')
    assert value is not None, name
    return value


def dropped(daemon: Running) -> dict[str, float]:
    """How many samples were dropped, by reason; reasons that did not occur are left out."""
    with urllib.request.urlopen(f"{daemon.address}/metrics", timeout=10) as answer:  # noqa: S310 - loopback
        text = answer.read().decode()
    found = re.findall(r'^stream_gru_samples_dropped_total\{reason="(\w+)",.*\} (\S+)$', text, re.MULTILINE)
    return {reason: float(value) for reason, value in found if float(value)}


def end(
    daemon: Running,
    *,
    lost: Mapping[str, float] | None = None,
    missing: int = 0,
    reconnected: bool = False,
    sessions_lost: int = 0,
) -> str:
    """Stop an idle daemon: every sample was applied or dropped for a reason, and it exits cleanly.

    ``lost``: samples dropped, by reason; ``missing``: samples that devices have counted and that never arrived;
    ``reconnected``: whether the source has reconnected in between.
    """
    turns_on(daemon)  # and so has checked its connections
    assert dropped(daemon) == (lost or {})
    received, applied = (of_source(daemon, f"samples_{name}_total") for name in ("received", "applied"))
    assert received == applied + sum((lost or {}).values())
    assert of_source(daemon, "device_seq_missing_total") == missing
    assert (of_source(daemon, "source_reconnects_total") > 0) is reconnected
    assert of_source(daemon, "source_sessions_lost_total") == sessions_lost
    output = daemon.stop()
    assert "unaccounted" not in output
    assert output.count("the broker lost the session") == sessions_lost
    return output


def turns_on(daemon: Running) -> None:
    """Check that the loop is running."""
    begin = daemon.metric("stream_gru_loop_last_timestamp_seconds") or 0.0
    wait_for(lambda: (daemon.metric("stream_gru_loop_last_timestamp_seconds") or 0.0) > begin + 1.0, what="the loop")


def pause(seconds: float) -> None:
    """Sleep where only time is waited for."""
    time.sleep(seconds)


def hold(daemon: Running) -> None:
    """Suspend a daemon: messages sent to it stay in flight."""
    daemon.process.send_signal(signal.SIGSTOP)


def resume(daemon: Running) -> None:
    """Continue after `hold`."""
    daemon.process.send_signal(signal.SIGCONT)


def count(records: Records) -> int:
    """The number of these samples."""
    return sum(map(len, records.values()))
