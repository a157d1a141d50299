from __future__ import annotations

import csv
import gzip
import itertools
import json
import math
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rules import RULES, marks, queries, recording_rules, substituted
from tests.deploy.support import DEPLOY, server_process
from tests.support.network import free_port
from tests.support.paths import BUNDLE, HELD_OUT
from tests.support.requirements import need
from tests.support.waiting import wait_for

pytestmark = pytest.mark.servers

INTERVAL = "10s"
HISTORY_S = 300  # longer than the model takes to warm up


def recorded_rows() -> Iterator[list[str]]:
    """The held-out recording, with its header."""
    with gzip.open(HELD_OUT, "rt") as file:
        yield from csv.reader(file)


def send_pumps(daemon: subprocess.Popen[bytes], stop: threading.Event) -> None:
    """Send two pumps as if measured now: some minutes of history at once, then a row per second and pump."""
    assert daemon.stdin is not None
    recorded = recorded_rows()
    start = int(time.time()) - HISTORY_S
    daemon.stdin.write((",".join(next(recorded)) + "\n").encode())
    for second, together in itertools.groupby(recorded, key=lambda row: row[0]):
        del second
        for row in together:
            row[0] = datetime.fromtimestamp(start, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            daemon.stdin.write((",".join(row) + "\n").encode())
        start += 1
        if start > time.time():
            daemon.stdin.flush()
            if stop.wait(start - time.time()):
                return


class Prometheus:
    """The server that scrapes the daemon."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10.0) as response:  # noqa: S310
            return json.load(response)["data"]

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=10.0):  # noqa: S310
                return True
        except OSError:
            return False

    def has(self, expression: str) -> bool:
        """Whether an expression now has a finite value."""
        found = self.ask("query", query=substituted(expression, INTERVAL))["result"]
        return any(math.isfinite(float(series["value"][1])) for series in found)


@contextmanager
def scraped(folder: Path) -> Iterator[Prometheus]:
    """A daemon with input, and a Prometheus with the shipped rules that scrapes it every second."""
    listen, port = free_port(), free_port()
    config = folder / "gateway.toml"
    config.write_text(
        f'[run]\nbundle = "{BUNDLE}"\nstate_dir = "state"\n'
        f'[[source]]\ntype = "stdin"\nformat = "csv"\n'
        f'[[sink]]\ntype = "file"\npath = "{folder}/out.jsonl"\n[metrics]\nlisten = "127.0.0.1:{listen}"\n'
    )
    settings = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    settings["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(RULES)]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{listen}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(settings))
    daemon: list[str | Path] = [sys.executable, "-m", "stream_gru", "run", config]
    server = [
        *(need("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    stop = threading.Event()
    with (
        server_process(daemon, listen, folder / "daemon.log", subprocess.PIPE) as running,
        server_process(server, port, folder / "prometheus.log"),
    ):
        feeder = threading.Thread(target=send_pumps, args=(running, stop))
        feeder.start()
        try:
            prometheus = Prometheus(port)
            wait_for(prometheus.is_ready, 30.0, "Prometheus to be ready")
            yield prometheus
        finally:
            stop.set()
            feeder.join(10.0)


def test_every_panel_shows_something(tmp_path: Path) -> None:
    """A real Prometheus scrapes a real daemon: each query of a panel has a value, rules are healthy, no alert fires."""
    need("prometheus")
    with scraped(tmp_path) as prometheus:
        missing = list(queries())

        def complete() -> bool:
            missing[:] = [query for query in missing if not prometheus.has(query.expression)]
            return not missing

        try:
            wait_for(complete, 90.0, "values of all panels")
        except AssertionError:
            pytest.fail("\n".join(f"empty: {query.panel}: {query.expression}" for query in missing))
        for mark in marks():
            prometheus.ask("query", query=substituted(mark.expression))
        rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        wait_for(
            lambda: {r["health"] for g in prometheus.ask("rules")["groups"] for r in g["rules"]} == {"ok"},
            30.0,
            "every rule to be evaluated",
        )
        for name in recording_rules():
            wait_for(lambda name=name: prometheus.has(name), 30.0, f"a value of {name}")  # type: ignore[misc]
        assert len(rules) > len(recording_rules())
        alerts = prometheus.ask("alerts")["alerts"]
        firing = [alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"]
        assert firing == []
