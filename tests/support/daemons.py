"""A real daemon in its own process, and its expected outputs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.model.bundle import load_bundle
from tests.support.paths import BUNDLE, HELD_OUT
from tests.support.waiting import wait_for

CHANNELS = ("flow", "pressure", "current", "vibration")
BEGIN_S = 1_772_323_200  # 2026-03-01, where the shipped recordings start


_MQTT = """
[run]
bundle = "{bundle}"
{run}
[[broker]]
url = "{url}"
client_id = "gateway"

[[source]]
type = "mqtt"
topics = ["sensors/{{stream}}/data"]
format = "json"

[source.input]
time = "ts"
time_unit = "s"

[[sink]]
{sink}

[metrics]
listen = "127.0.0.1:0"
"""


def mqtt_config(url: str, *, bundle: Path = BUNDLE, run: str = "", sink: str = 'type = "mqtt"') -> str:
    """A daemon between two topics of a broker; ``run``: more lines of [run]; ``sink``: the lines of its sink."""
    return _MQTT.format(url=url, bundle=bundle, run=run, sink=sink)


class Running:
    """``stream-gru run`` with a configuration; its standard error goes to ``log``; ``fed``: `feed` is its input."""

    def __init__(self, config: Path, *arguments: str, fed: bool = False) -> None:
        self.config, self._arguments, self._fed = config, arguments, fed
        self.log = config.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""
        self.ready_after: Callable[[], bool] = lambda: True  # a condition during the start

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "stream_gru", "run", str(self.config), *self._arguments]
            stdin = subprocess.PIPE if self._fed else None
            self._process = subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log)
        wait_for(self.ready_after, what="the start", timeout_s=60)
        wait_for(self._ready, what="the daemon", timeout_s=60)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def feed(self, *lines: str) -> None:
        """Write lines to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self.process.stdin.flush()

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.text()
        found = re.search(r"metrics at (\S+)/metrics", self.text())
        self.address = found[1] if found else ""
        return bool(found)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running process."""
        assert self._process is not None
        return self._process

    def text(self) -> str:
        """The output so far."""
        return self.log.read_text()

    def metric(self, series: str) -> float | None:
        """The value of one series, as Prometheus reads it: ``name{label="value"}``; None if it does not exist."""
        with urllib.request.urlopen(f"{self.address}/metrics", timeout=10) as answer:  # noqa: S310 - loopback
            text = answer.read().decode()
        found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else None

    def wait_for_sources(self, *sources: str) -> None:
        """Wait until these sources are subscribed or open: messages published before would be lost."""
        for name in sources:
            wait_for(lambda: self.metric(f'stream_gru_source_connected{{source="{name}"}}') == 1, what=f"source {name}")  # noqa: B023

    def hang_up(self) -> None:
        """Reload its configuration."""
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> str:
        """Stop it with SIGTERM, check for a clean exit, and return its output."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(30) == 0, self.text()
        assert "Traceback" not in self.text(), self.text()
        return self.text()


def pump_records(streams: int, samples: int) -> dict[str, list[dict[str, float]]]:
    """Records of ``streams`` devices, ``samples`` each, as devices send them: ``ts`` in seconds, four channels."""
    manifest = load_bundle(BUNDLE).manifest
    recorded = read_files([str(HELD_OUT)], Fields.of(manifest.input, manifest.channels)).values
    values = recorded[np.isfinite(recorded).all(axis=1)].astype(np.float64).round(3)
    records = {}
    for device in range(streams):
        rows = values[(device * 37) % 3000 :][:samples]
        records[f"dev-{device}"] = [
            {"ts": BEGIN_S + second, **dict(zip(CHANNELS, row.tolist(), strict=True))}
            for second, row in enumerate(rows)
        ]
    return records


def replayed(records: dict[str, list[dict[str, float]]], folder: Path) -> list[bytes]:
    """The rows that `replay` writes for the same samples, sorted."""
    recording, out = folder / "records.jsonl", folder / "replayed.jsonl"
    with recording.open("w") as file:
        for stream, rows in records.items():
            for row in rows:
                record = {"time": row["ts"], "pump": stream, **{name: row[name] for name in CHANNELS if name in row}}
                file.write(json.dumps(record) + "\n")
    config = folder / "replay.toml"
    config.write_text(
        f'[run]\nbundle = "{BUNDLE}"\n[input]\ntime_unit = "s"\n'
        f'[[source]]\ntype = "replay"\nfiles = ["{recording}"]\n'
        f'[[sink]]\ntype = "file"\npath = "{out}"\n[metrics]\nenabled = false\n'
    )
    command = [sys.executable, "-m", "stream_gru", "run", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return sorted(out.read_bytes().splitlines())


def ids(rows: Iterable[bytes]) -> list[str]:
    """The ids of output rows."""
    return [json.loads(row)["id"] for row in rows]
