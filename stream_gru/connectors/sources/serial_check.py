"""Checks of serial ports: existence, permissions, and use by another program.

No port is opened, which would restart most Arduinos and take bytes from another reader.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from stream_gru.connectors.sources.serial import SerialSource, SerialSourceConfig
from stream_gru.core.checks import Check, State
from stream_gru.core.errors import ConfigError

_PORTS = ("ttyUSB*", "ttyACM*", "ttyAMA*")
_GROUP_RW = stat.S_IRGRP | stat.S_IWGRP


def serial_ports(folder: Path = Path("/dev")) -> Check:
    """List the serial ports of this machine."""
    found = _ports(folder)
    return Check("serial ports", State.OK, ", ".join(found) if found else "none")


def check_serial(source: SerialSourceConfig, folder: Path = Path("/dev"), proc: Path = Path("/proc")) -> Check:
    """Check that the port of a source exists, that this user may open it, and that no other program uses it."""
    port = source.port
    name = f"serial {port}"
    try:
        SerialSource(source, name=name)
    except ConfigError as error:
        return Check(name, State.FAIL, str(error), "correct the [[source]] table; see `stream-gru config run`")
    if port.find("://") > 0:
        return Check(name, State.OK, "a URL; the daemon opens it at its start")
    try:
        facts = Path(port).stat()
    except OSError as error:
        existing = ", ".join(_ports(folder)) or "none"
        return Check(
            name, State.FAIL, f"{error.strerror}; existing ports: {existing}",
            "connect the device, or choose another port: ls -l /dev/serial/by-id",
        )  # fmt: skip
    if not stat.S_ISCHR(facts.st_mode):
        return Check(name, State.FAIL, "not a serial port", "choose a device such as /dev/ttyUSB0")
    if not os.access(port, os.R_OK | os.W_OK):
        return Check(name, State.FAIL, "not accessible by this user", _access_advice(facts))
    users = _users(facts, proc)
    if users:
        programs = ", ".join(f"pid {pid} ({command})" for pid, command in users)
        return Check(name, State.WARN, f"used by {programs}", "stop that program, unless it is this daemon")
    stable = _by_id(port, folder)
    advice = f"use {stable}, which does not change when devices are reconnected" if stable else ""
    return Check(name, State.OK, "exists and is accessible", advice)


def _access_advice(facts: os.stat_result) -> str:
    user = pwd.getpwuid(os.getuid()).pw_name
    try:
        entry = grp.getgrgid(facts.st_gid)
    except KeyError:
        return f"give user {user} access with a udev rule"
    if entry.gr_name == "root" or facts.st_mode & _GROUP_RW != _GROUP_RW:
        return (
            'set its group with a udev rule: GROUP="dialout", MODE="0660", see deploy/udev/99-stream-gru.rules\n'
            f"and add user {user} to that group"
        )
    if user in entry.gr_mem:
        return f"user {user} was added to group {entry.gr_name} after this login; log in again, or restart the service"
    return f"sudo usermod -aG {entry.gr_name} {user}; then log in again"


def _users(facts: os.stat_result, proc: Path) -> list[tuple[int, str]]:
    """Process id and name of the other processes that have a device open or locked and are visible to this user."""
    found = {*_opened_by(facts, proc), *_locked_by(facts, proc)} - {os.getpid()}
    return [(pid, _command(pid, proc)) for pid in sorted(found)]


def _opened_by(facts: os.stat_result, proc: Path) -> Iterator[int]:
    """Processes with an open descriptor of the device; only root sees those of other users."""
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):  # the process of another user, or ended
            if any(_is_open(descriptor, facts) for descriptor in (process / "fd").iterdir()):
                yield int(process.name)


def _is_open(descriptor: Path, facts: os.stat_result) -> bool:
    with suppress(OSError):  # closed in the meantime
        if str(descriptor.readlink()).startswith("/dev/"):
            device = descriptor.stat()
            return stat.S_ISCHR(device.st_mode) and device.st_rdev == facts.st_rdev
    return False


def _locked_by(facts: os.stat_result, proc: Path) -> Iterator[int]:
    """Processes that hold a lock on the device file, those of all users included."""
    place = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    with suppress(OSError, ValueError):
        for line in (proc / "locks").read_text().splitlines():
            words = line.split()
            # "1: FLOCK ADVISORY WRITE 4711 00:05:789 0 EOF"; "->" marks a process that waits for the lock.
            if place in words and "->" not in words:
                pid = int(words[words.index(place) - 1])
                if pid > 0:  # otherwise it is outside this container
                    yield pid


def _command(pid: int, proc: Path) -> str:
    try:
        return (proc / str(pid) / "comm").read_text().strip()
    except OSError:
        return "?"


def _ports(folder: Path) -> list[str]:
    by_id = sorted(map(str, (folder / "serial" / "by-id").glob("*")))
    return by_id or sorted(str(path) for pattern in _PORTS for path in folder.glob(pattern))


def _by_id(port: str, folder: Path) -> str:
    """The stable name of a port under by-id, empty if there is none or it is used already."""
    same = [path for path in _ports(folder) if "by-id" in path and Path(path).resolve() == Path(port).resolve()]
    return "" if not same or port in same or "/serial/" in port else same[0]
