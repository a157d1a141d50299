from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_gru.runtime.health import SystemdNotifier, sd_notify


class Manager:
    """Stands in for systemd: a datagram socket and what it received."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)

    def heard(self) -> list[str]:
        """Datagrams since the last call: one to a socket is there as soon as it is sent."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """Yield a manager at a path, and one with an abstract name."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@stream-gru-test-{os.getpid()}-{id(request)}"
    listening = Manager(address)
    yield listening
    listening.socket.close()


def test_each_change_is_one_datagram_of_the_protocol(manager: Manager) -> None:
    """Ready, reloading with its time, stopping and status."""
    notifier = SystemdNotifier({"NOTIFY_SOCKET": manager.address}, lambda: 12.5)
    notifier.ready()
    notifier.status("3 streams,\n1 silent")
    notifier.reloading()
    notifier.stopping()
    assert manager.heard() == [
        "READY=1",
        "STATUS=3 streams, 1 silent",
        "RELOADING=1\nMONOTONIC_USEC=12500000",
        "STOPPING=1",
    ]


def test_the_watchdog_is_fed_three_times_per_timeout(manager: Manager) -> None:
    """At any rate of the loop, a heartbeat is sent once every third of WATCHDOG_USEC."""
    now = [100.0]
    environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = SystemdNotifier(environ, lambda: now[0])
    for tenth in range(301):
        now[0] = 100.0 + tenth / 10
        notifier.heartbeat()
    assert manager.heard() == ["WATCHDOG=1"] * 4  # at 0, 10, 20 and 30 s


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-1"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "?"},
    ],
)
def test_without_a_watchdog_no_heartbeat_is_sent(manager: Manager, watchdog: dict[str, str]) -> None:
    """If the watchdog is off, or watches another process."""
    notifier = SystemdNotifier({"NOTIFY_SOCKET": manager.address, **watchdog})
    notifier.heartbeat()
    assert manager.heard() == []


@pytest.mark.parametrize(
    "address", ["", "relative", "@", "/nowhere/notify", "/nul\0inside", "/" + "long" * 100, "vsock:2:1"]
)
def test_a_missing_manager_is_not_an_error(address: str) -> None:
    """Also with an invalid address every call returns."""
    notifier = SystemdNotifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1"})
    for tell in (notifier.ready, notifier.reloading, notifier.stopping, notifier.heartbeat):
        tell()
    notifier.status("text")
    assert not sd_notify(address, "READY=1")


def test_a_manager_that_does_not_read_does_not_block(manager: Manager) -> None:
    """When the socket is full the message is lost and the daemon continues."""
    taken = 0
    while taken < 100_000 and sd_notify(manager.address, "STATUS=" + "x" * 500):
        taken += 1
    assert 0 < taken < 100_000
    SystemdNotifier({"NOTIFY_SOCKET": manager.address}).ready()


def test_the_environment_is_that_of_the_process(manager: Manager) -> None:
    """A process with the variables of systemd sends, and its time is that of CLOCK_MONOTONIC."""
    script = (
        "from stream_gru.runtime.health import SystemdNotifier; n = SystemdNotifier(); n.reloading(); "
        "n.heartbeat(); n.heartbeat()"
    )
    environ = {**os.environ, "NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000"}
    environ.pop("WATCHDOG_PID", None)
    before = time.monotonic_ns() // 1000
    subprocess.run([sys.executable, "-c", script], env=environ, check=True, timeout=60)
    reloading, alive = manager.heard()
    found = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", reloading)
    assert found is not None
    assert before <= int(found[1]) <= time.monotonic_ns() // 1000
    assert alive == "WATCHDOG=1"
