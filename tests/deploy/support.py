"""Programs, ports and waiting, for tests that start real servers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
_TICK_S = 0.05


def need(program: str) -> str:
    """Return the path of a program of the system, or skip the test by its name."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], object], what: str, within_s: float = 30.0) -> None:
    """Return as soon as ``holds()``; fail with ``what`` when it does not in time."""
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"waited {within_s:g} s in vain for {what}"
        time.sleep(_TICK_S)


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def run(*command: str | Path, within_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; both its outputs come as one text."""
    return subprocess.run(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within_s,
        check=False,
    )


@contextmanager
def serving(
    command: Sequence[str | Path], port: int, log: Path, stdin: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """A server that listens on ``port``; what it says goes to ``log``; it is stopped at the end."""
    with log.open("ab") as output:
        server = subprocess.Popen(list(map(str, command)), stdin=stdin, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_until(
                lambda: server.poll() is not None or listens(port), f"{command[0]} on port {port}, see {log}", 60.0
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
