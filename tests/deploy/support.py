"""Programs, ports and waiting, for tests that start real servers."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.waiting import wait_for

DEPLOY = ROOT / "deploy"


def listens(port: int) -> bool:
    """Whether a server accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def run_program(*command: str | Path, within_s: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; both its outputs are returned as one text."""
    return subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within_s,
        check=False,
    )


@contextmanager
def server_process(
    command: Sequence[str | Path], port: int, log: Path, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that listens on ``port``; its output goes to ``log``; it is stopped at the end."""
    with log.open("ab") as output:
        server = subprocess.Popen(list(map(str, command)), stdin=stdin, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for(
                lambda: server.poll() is not None or listens(port), 60.0, f"{command[0]} on port {port}, see {log}"
            )
            assert server.poll() is None, log.read_text(errors="replace")
            yield server
        finally:
            server.terminate()
            try:
                server.wait(20.0)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
            if server.stdin is not None:
                server.stdin.close()
