"""Checks of the machine: serial ports, clock, disks, memory, the address of the endpoints."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import socket
import stat
import subprocess
import time
from pathlib import Path

from stream_gru.cli.doctor_check import Check, State
from stream_gru.cli.remote import remote_at
from stream_gru.errors import StreamGruError

_MIB = 1_048_576
_DISK_WARN_BYTES, _DISK_FAIL_BYTES = 512 * _MIB, 16 * _MIB
_MEMORY_WARN_BYTES, _MEMORY_FAIL_BYTES = 256 * _MIB, 64 * _MIB
# 2025-01-01: a clock before it was never set.
_CLOCK_SET_S = 1_735_689_600
_PORTS = ("ttyUSB*", "ttyACM*", "ttyAMA*")
_COMMAND_S = 5.0
_OK = 200


def serial_ports(folder: Path = Path("/dev")) -> Check:
    """The serial ports that are there."""
    found = _ports(folder)
    return Check("serial ports", State.OK, ", ".join(found) if found else "none")


def check_serial(port: str, folder: Path = Path("/dev")) -> Check:
    """Whether a port is there, and whether this user may open it; it is not opened."""
    name = f"serial {port}"
    if "://" in port:
        return Check(name, State.OK, "a URL: it is looked for when the daemon starts")
    try:
        facts = Path(port).stat()
    except OSError as error:
        there = ", ".join(_ports(folder)) or "none"
        return Check(
            name, State.FAIL, f"{error.strerror}; ports that are there: {there}",
            "plug the device in, or name another port: ls -l /dev/serial/by-id",
        )  # fmt: skip
    if not stat.S_ISCHR(facts.st_mode):
        return Check(name, State.FAIL, "this is no serial port", "name a device such as /dev/ttyUSB0")
    if not os.access(port, os.R_OK | os.W_OK):
        return Check(name, State.FAIL, "this user may not open it", _way_in(facts.st_gid))
    stable = _by_id(port, folder)
    if stable:
        return Check(name, State.OK, "there, may be opened", f"{stable} stays the same when devices are plugged anew")
    return Check(name, State.OK, "there, may be opened")


def _way_in(group: int) -> str:
    user = pwd.getpwuid(os.getuid()).pw_name
    try:
        entry = grp.getgrgid(group)
    except KeyError:
        return f"give user {user} access to it, by a rule of udev"
    if user in entry.gr_mem:
        return f"user {user} is in group {entry.gr_name} since this login began: log in again, or restart the service"
    return f"sudo usermod -aG {entry.gr_name} {user}; then log in again"


def _ports(folder: Path) -> list[str]:
    by_id = sorted(map(str, (folder / "serial" / "by-id").glob("*")))
    return by_id or sorted(str(path) for pattern in _PORTS for path in folder.glob(pattern))


def _by_id(port: str, folder: Path) -> str:
    """The name of a port that does not depend on the order of plugging, where there is one and it is not used."""
    same = [path for path in _ports(folder) if "by-id" in path and Path(path).resolve() == Path(port).resolve()]
    return "" if not same or port in same or "/serial/" in port else same[0]


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
        status, text = remote.ask("GET", "/-/healthy")
    except StreamGruError:
        return Check(name, State.FAIL, reason, "choose another address: listen in [metrics]")
    if status == _OK and text == "healthy":
        return Check(name, State.OK, "a daemon runs there and is well")
    return Check(name, State.FAIL, f"{reason}; what is there says {text!r:.80}", "choose another address, or end it")
