"""The server in a process of its own, with streams that have hostile names and outputs that never end.

Prints its address; ends with its standard input.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from stream_gru.runtime.http.api import StreamStatus
from stream_gru.runtime.metrics import Metrics, build_registry
from tests.support.models import make_bundle
from tests.support.paths import ROOT
from tests.support.web import FakeDaemon, outputs, serving

_STREAMS = 20_000


class _Crowded(FakeDaemon):
    """A daemon of many streams."""

    def streams(self, limit: int) -> list[StreamStatus]:
        """As many as asked for, with long names."""
        return [StreamStatus(f"{i:0128d}", None, i, "online") for i in range(min(limit, _STREAMS))]


@dataclass
class WebProcess:
    """The process and where it listens; what it says on standard error goes to ``log``."""

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
    command = [sys.executable, "-m", "tests.support.web_process"]
    with (
        log.open("w") as said,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
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
    """Serve until nobody holds our standard input."""
    logging.basicConfig(stream=sys.stderr)
    daemon = _Crowded()
    ending = threading.Event()

    def write() -> None:
        for first in count(step=100):
            if ending.wait(0.02):
                return
            daemon.feed.write(outputs(["a"] * 100, first, horizon=8))

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
