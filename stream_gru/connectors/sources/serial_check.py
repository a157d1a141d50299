"""Checks of serial ports: is there such a port, may this user open it, does another program have it.

No port is opened: that restarts most Arduinos, and takes bytes from who reads.
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
    """The serial ports that are there."""
    found = _ports(folder)
    return Check("serial ports", State.OK, ", ".join(found) if found else "none")


def check_serial(source: SerialSourceConfig, folder: Path = Path("/dev"), proc: Path = Path("/proc")) -> Check:
    """Whether the port of a source is there, this user may open it, and no other program is known to have it."""
    port = source.port
    name = f"serial {port}"
    try:
        SerialSource(source, name=name)
    except ConfigError as error:
        return Check(name, State.FAIL, str(error), "correct the [[source]] table; see: stream-gru config run")
    if port.find("://") > 0:
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
        return Check(name, State.FAIL, "this user may not open it", _way_in(facts))
    users = _users(facts, proc)
    if users:
        told = ", ".join(f"pid {pid} ({command})" for pid, command in users)
        return Check(name, State.WARN, f"used by {told}", "end that program, unless it is this daemon")
    stable = _by_id(port, folder)
    advice = f"{stable} stays the same when devices are plugged anew" if stable else ""
    return Check(name, State.OK, "there, may be opened", advice)


def _way_in(facts: os.stat_result) -> str:
    user = pwd.getpwuid(os.getuid()).pw_name
    try:
        entry = grp.getgrgid(facts.st_gid)
    except KeyError:
        return f"give user {user} access to it, by a rule of udev"
    if entry.gr_name == "root" or facts.st_mode & _GROUP_RW != _GROUP_RW:
        return (
            'let a rule of udev give it a group: GROUP="dialout", MODE="0660", see deploy/udev/99-stream-gru.rules\n'
            f"and user {user} must be in that group"
        )
    if user in entry.gr_mem:
        return f"user {user} is in group {entry.gr_name} since this login began: log in again, or restart the service"
    return f"sudo usermod -aG {entry.gr_name} {user}; then log in again"


def _users(facts: os.stat_result, proc: Path) -> list[tuple[int, str]]:
    """Number and name of each other process that has a device open or locked, as far as this user may know."""
    found = {*_opened_by(facts, proc), *_locked_by(facts, proc)} - {os.getpid()}
    return [(pid, _command(pid, proc)) for pid in sorted(found)]


def _opened_by(facts: os.stat_result, proc: Path) -> Iterator[int]:
    """Processes with a descriptor of the device; those of other users are shown to root alone."""
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):  # it is another user's, or has ended
            if any(_is_open(descriptor, facts) for descriptor in (process / "fd").iterdir()):
                yield int(process.name)


def _is_open(descriptor: Path, facts: os.stat_result) -> bool:
    with suppress(OSError):  # closed meanwhile
        if str(descriptor.readlink()).startswith("/dev/"):
            there = descriptor.stat()
            return stat.S_ISCHR(there.st_mode) and there.st_rdev == facts.st_rdev
    return False


def _locked_by(facts: os.stat_result, proc: Path) -> Iterator[int]:
    """Processes that hold a lock on the device file; the table of locks is readable by everybody."""
    place = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    with suppress(OSError, ValueError):
        for line in (proc / "locks").read_text().splitlines():
            words = line.split()
            # "1: FLOCK ADVISORY WRITE 4711 00:05:789 0 EOF"; "->" stands before the kind of one that waits.
            if place in words and "->" not in words:
                pid = int(words[words.index(place) - 1])
                if pid > 0:  # else it is outside of this container
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
    """The name of a port that does not depend on the order of plugging, where there is one and it is not used."""
    same = [path for path in _ports(folder) if "by-id" in path and Path(path).resolve() == Path(port).resolve()]
    return "" if not same or port in same or "/serial/" in port else same[0]
