"""Checks of the machine: clock, disks, memory and the HTTP address."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path

from stream_gru.cli.remote import remote_at
from stream_gru.core.checks import Check, State
from stream_gru.core.errors import StreamGruError

_MIB = 1_048_576
_MEMORY_WARN_BYTES, _MEMORY_FAIL_BYTES = 256 * _MIB, 64 * _MIB
# 2025-01-01; an earlier time means that the clock was never set.
_CLOCK_SET_S = 1_735_689_600
_COMMAND_S = 5.0
_OK = 200


def check_clock(now_s: float | None = None) -> Check:
    """Check that the clock was set and is synchronized."""
    now_s = time.time() if now_s is None else now_s
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))
    advice = "sudo timedatectl set-ntp true"
    if now_s < _CLOCK_SET_S:
        return Check("clock", State.FAIL, f"{text}: the clock was never set", advice)
    synchronized = _synchronized()
    if synchronized is None:
        return Check("clock", State.OK, f"{text}; synchronization unknown")
    if not synchronized:
        return Check("clock", State.WARN, f"{text}; not synchronized", advice)
    return Check("clock", State.OK, f"{text}; synchronized")


def _synchronized() -> bool | None:
    """Whether systemd reports a synchronized clock; None without systemd."""
    command = shutil.which("timedatectl")
    if command is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            [command, "show", "-p", "NTPSynchronized", "--value"],
            capture_output=True, text=True, check=False, timeout=_COMMAND_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())


def check_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> Check:
    """Check the available memory, and the limit of the container or service."""
    available = [n for n in (_available(proc), _within_limit(cgroup)) if n is not None]
    if not available:
        return Check("memory", State.OK, "unknown")
    found = f"{min(available) / _MIB:,.0f} MiB available"
    if min(available) < _MEMORY_FAIL_BYTES:
        return Check("memory", State.FAIL, found, "stop other programs, or raise the memory limit")
    if min(available) < _MEMORY_WARN_BYTES:
        return Check("memory", State.WARN, found, "a daemon needs 60 to 150 MiB")
    return Check("memory", State.OK, found)


def _available(proc: Path) -> int | None:
    try:
        lines = proc.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _within_limit(cgroup: Path) -> int | None:
    try:
        return int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # "max": no limit
        return None


def check_listen(listen: str) -> Check:
    """Check that the HTTP address is free, or used by a healthy daemon."""
    name = f"endpoints {listen}"
    remote = remote_at(f"http://{listen}")
    family = socket.AF_INET6 if ":" in remote.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((remote.host, remote.port))
        except OSError as error:
            reason = error.strerror or str(error)
        else:
            return Check(name, State.OK, "free")
    try:
        status, text = remote.request("GET", "/-/healthy")
    except StreamGruError:
        return Check(name, State.FAIL, reason, "choose another address: listen in [metrics]")
    if status == _OK and text == "healthy":
        return Check(name, State.OK, "in use by a healthy daemon")
    return Check(
        name,
        State.FAIL,
        f"{reason}; the program there answers {text!r:.80}",
        "choose another address, or stop that program",
    )
