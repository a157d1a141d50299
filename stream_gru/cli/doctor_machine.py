"""Checks of the machine: clock, disks, memory, the address of the endpoints."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from stream_gru.cli.doctor_check import Check, State
from stream_gru.cli.remote import remote_at
from stream_gru.core.errors import StreamGruError

_MIB = 1_048_576
_DISK_WARN_BYTES, _DISK_FAIL_BYTES = 512 * _MIB, 16 * _MIB
_MEMORY_WARN_BYTES, _MEMORY_FAIL_BYTES = 256 * _MIB, 64 * _MIB
# 2025-01-01: a clock before it was never set.
_CLOCK_SET_S = 1_735_689_600
_COMMAND_S = 5.0
_OK = 200


def check_clock(now_s: float | None = None) -> Check:
    """Whether the clock was set and something keeps it right."""
    now_s = time.time() if now_s is None else now_s
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))
    advice = "sudo timedatectl set-ntp true"
    if now_s < _CLOCK_SET_S:
        return Check("clock", State.FAIL, f"{text}: it was never set", advice)
    kept = _synchronized()
    if kept is None:
        return Check("clock", State.OK, f"{text}; whether it is synchronized cannot be told here")
    if not kept:
        return Check("clock", State.WARN, f"{text}; not synchronized", advice)
    return Check("clock", State.OK, f"{text}; synchronized")


def _synchronized() -> bool | None:
    """What systemd says; None where it says nothing."""
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


def check_folder(folder: Path) -> Check:
    """Whether a folder can be written and has room; one that is yet to be made is judged by where it will be."""
    name = f"disk {folder}"
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return Check(name, State.FAIL, f"{there} is no folder", "name another path")
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(name, State.FAIL, f"{there}: this user may not write there", f"sudo chown $USER {there}")
    free = shutil.disk_usage(there).free
    found = f"{free / _MIB:,.0f} MiB free"
    if free < _DISK_FAIL_BYTES:
        return Check(name, State.FAIL, found, "make room")
    if free < _DISK_WARN_BYTES:
        return Check(name, State.WARN, found, "make room, or rotate outputs: rotate_bytes and keep in [[sink]]")
    return Check(name, State.OK, found)


def check_memory(proc: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> Check:
    """How much memory there is for one more process, also by the limit of a container or service."""
    left = [bytes_ for bytes_ in (_available(proc), _within_limit(cgroup)) if bytes_ is not None]
    if not left:
        return Check("memory", State.OK, "cannot be told here")
    found = f"{min(left) / _MIB:,.0f} MiB available"
    if min(left) < _MEMORY_FAIL_BYTES:
        return Check("memory", State.FAIL, found, "end other programs, or raise the limit")
    if min(left) < _MEMORY_WARN_BYTES:
        return Check("memory", State.WARN, found, "a daemon takes 60 to 150 MiB")
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
    """Whether the endpoints can have their address, or a daemon has it already."""
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
        return Check(name, State.OK, "a daemon runs there and is well")
    return Check(name, State.FAIL, f"{reason}; what is there says {text!r:.80}", "choose another address, or end it")
