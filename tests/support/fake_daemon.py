"""The HTTP server with a made-up daemon behind it, here or in a process of its own, and a bare client of its events."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from prometheus_client import CollectorRegistry

from stream_gru.core.types import OutputSpec, PredictionBatch, SinkHealth, SourceHealth
from stream_gru.runtime.control.commands import Command, CommandResult, Commands
from stream_gru.runtime.http.api import Api, DaemonStatus, StreamStatus
from stream_gru.runtime.http.broadcast import OutputBroadcaster
from stream_gru.runtime.http.server import WebServer
from stream_gru.runtime.metrics import Metrics, build_registry
from tests.support.models import make_bundle
from tests.support.paths import ROOT

TOKEN = "0123456789abcdef-token"  # noqa: S105 - of the tests


@dataclass
class FakeDaemon:
    """Knows two streams, and executes commands in its own thread while it is `awake`."""

    token: str = TOKEN
    awake: bool = True
    done: list[tuple[str, str | None]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    feed: OutputBroadcaster = field(default_factory=OutputBroadcaster)
    commands: Commands = field(default_factory=Commands)
    stop: threading.Event = field(default_factory=threading.Event)

    def api(self) -> Api:
        """The functions it passes to the server."""
        return Api(self.status, self.streams, self.feed, self.commands, self.token, self.refuse)

    def status(self) -> DaemonStatus:
        """The status."""
        return DaemonStatus(
            version="1.2",
            model_id="0123456789ab",
            engine="numpy",
            ready=True,
            uptime_s=1.5,
            streams=2,
            sources={"mqtt": SourceHealth(queued=3)},
            sinks={"file": SinkHealth(connected=False)},
            counts={"received": 10},
            paused=("b",),
        )

    def refuse(self, action: str, why: str) -> None:
        """Record a rejection by the server."""
        self.refused.append((action, why))

    def streams(self, limit: int) -> list[StreamStatus]:
        """All its streams."""
        known = [StreamStatus("a", "2026-03-01T00:00:00Z", 5, "online"), StreamStatus("b", None, 0, "paused")]
        return known[:limit]

    def work(self) -> None:
        """Execute commands until stopped."""
        while not self.stop.wait(0.005):
            for command in self.commands.drain() if self.awake else []:
                command.reply(self.carry_out(command))

    def carry_out(self, command: Command) -> CommandResult:
        """Record it; only two streams are known."""
        if command.stream not in (None, "a", "b"):
            return CommandResult(False, f"unknown stream {command.stream!r}")
        self.done.append((str(command.action), command.stream))
        return CommandResult(True, f"{command.action} done", 2 if command.stream is None else 1)


@contextmanager
def serving(
    daemon: FakeDaemon, listen: str = "127.0.0.1:0", registry: CollectorRegistry | None = None
) -> Iterator[WebServer]:
    """A server on a free port in front of this daemon."""
    server = WebServer(
        listen, registry or CollectorRegistry(), lambda: (True, "healthy"), lambda: (True, "ready"), api=daemon.api()
    )
    worker = threading.Thread(target=daemon.work)
    worker.start()
    server.open()
    try:
        yield server
    finally:
        server.close()
        daemon.stop.set()
        worker.join()


@dataclass
class ServedDaemon:
    """A daemon and its server."""

    daemon: FakeDaemon
    server: WebServer

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        where = urlsplit(self.server.address)
        assert where.hostname is not None
        assert where.port is not None
        return where.hostname, where.port

    def raw(self, request: bytes) -> bytes:
        """All data until the server closes."""
        answer = b""
        with socket.create_connection(self.address, timeout=10) as client:
            try:
                client.sendall(request)
                while got := client.recv(65_536):
                    answer += got
            except (ConnectionResetError, BrokenPipeError):  # closed while this client was sending
                pass
        return answer


class Listener:
    """A client of ``/api/v1/outputs``."""

    def __init__(self, server: WebServer, query: str = "", timeout_s: float = 5.0) -> None:
        place = urlsplit(server.address)
        assert place.hostname is not None
        self._connection = http.client.HTTPConnection(place.hostname, place.port, timeout=timeout_s)
        self._connection.request("GET", "/api/v1/outputs" + query)
        self.answer = self._connection.getresponse()
        self.status = self.answer.status
        if self.status == 200:
            assert self.line().startswith(":")
            self.line()

    def line(self) -> str:
        """The next line; empty at the end of an event, and always after the end of the stream."""
        return self.answer.readline().decode().rstrip("\n")

    def row(self) -> dict[str, object]:
        """The next row; comments and other events are skipped."""
        while True:
            line = self.line()
            if line.startswith("event:"):
                self.line()
            elif line.startswith("data: "):
                row: dict[str, object] = json.loads(line.removeprefix("data: "))
                return row
            elif not line and self.answer.isclosed():
                raise EOFError

    def close(self) -> None:
        """Disconnect."""
        self.answer.close()
        self._connection.close()


def daemon_outputs(streams: list[str], first: int = 0, horizon: int = 1) -> PredictionBatch:
    """An output for each of these, with steps that count from ``first``."""
    names, n = tuple(dict.fromkeys(streams)), len(streams)
    return PredictionBatch(
        spec=OutputSpec("0123456789ab", targets=("x",), horizon=horizon),
        stream_names=names,
        stream_index=np.array([names.index(name) for name in streams], np.int32),
        time_ns=np.arange(n, dtype=np.int64) * 10**9,
        status=np.zeros(n, np.uint8),
        reset=np.zeros(n, np.uint8),
        steps_since_reset=np.arange(first, first + n, dtype=np.int64),
        imputed=np.zeros(n, np.int32),
        forecast=np.ones((n, 1, horizon), np.float32),
    )


_STREAMS = 20_000


class _Crowded(FakeDaemon):
    """A daemon of many streams."""

    def streams(self, limit: int) -> list[StreamStatus]:
        """The requested number, with long names."""
        return [StreamStatus(f"{i:0128d}", None, i, "online") for i in range(min(limit, _STREAMS))]


@dataclass
class WebProcess:
    """The process and its address; its standard error goes to ``log``."""

    process: subprocess.Popen[str]
    host: str
    port: int
    log: Path

    @property
    def descriptors(self) -> int:
        """Files and sockets that it has open."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def fact(self, name: str) -> int:
        """A number in its status: ``VmHWM`` and ``VmRSS`` in KiB, ``Threads``."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


@contextmanager
def web_process(folder: Path) -> Iterator[WebProcess]:
    """A server that runs."""
    log = folder / "web.log"
    command = [sys.executable, "-m", "tests.support.fake_daemon"]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
        ) as process,
    ):
        assert process.stdout is not None
        host, _, port = process.stdout.readline().strip().removeprefix("http://").rpartition(":")
        assert host, log.read_text()
        try:
            yield WebProcess(process, host, int(port), log)
        finally:
            process.kill()


def main() -> None:
    """Serve until standard input is closed."""
    logging.basicConfig(stream=sys.stderr)
    daemon = _Crowded()
    ending = threading.Event()

    def write() -> None:
        for first in count(step=100):
            if ending.wait(0.02):
                return
            daemon.feed.write(daemon_outputs(["a"] * 100, first, horizon=8))

    writer = threading.Thread(target=write)
    metrics = Metrics(build_registry(), make_bundle(labels=5, horizon=24).manifest, "numpy", "0")
    for name in "abcd":
        metrics.add_source(name)
        metrics.add_sink(name)
    with serving(daemon, registry=metrics.registry) as server:
        writer.start()
        print(server.address, flush=True)  # noqa: T201
        sys.stdin.read()
        ending.set()
        writer.join()


if __name__ == "__main__":
    main()
