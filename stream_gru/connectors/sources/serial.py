"""A serial port: a device file, or any URL of pyserial (``socket://``, ``rfc2217://``, ``loop://``, ``hwgrep://``).

A serial line has no acknowledgements and no storage: what is sent while the port is closed is lost (at most once).
Opening a port raises DTR, which restarts most Arduinos, and may start in the middle of a line, which is skipped; a
device that counts its samples makes such gaps visible.  The check of `doctor` therefore opens no port.
"""

from __future__ import annotations

import errno
import grp
import importlib.util
import logging
import os
import pwd
import select
import stat
import termios
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import serial
from msgspec import Meta

from stream_gru.config.connector import SourceContext, SourceTable, Unique
from stream_gru.config.field_types import Seconds
from stream_gru.config.problems import Problem, quoted
from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.sources.framing import CobsFramer, Framer, LineFramer
from stream_gru.core.checks import Check, State
from stream_gru.core.errors import ConfigError, SourceUnavailable
from stream_gru.core.types import DropReason, Position, RawMessage, SourceHealth

log = logging.getLogger(__name__)

_CHUNK_BYTES = 65_536
_PARITY = {"none": serial.PARITY_NONE, "even": serial.PARITY_EVEN, "odd": serial.PARITY_ODD}
_PLACES = (("/dev/serial/by-id", "*"), ("/dev", "ttyUSB*"), ("/dev", "ttyACM*"), ("/dev", "ttyAMA*"))
_NETWORK = ("socket", "rfc2217")
_HINTS = {
    errno.EACCES: "permission denied; add the user to the group dialout: sudo usermod -aG dialout USER",
    errno.EPERM: "permission denied; add the user to the group dialout: sudo usermod -aG dialout USER",
    errno.EAGAIN: "another program uses it",
    errno.EBUSY: "another program uses it",
}


class SerialSourceConfig(SourceTable, frozen=True, kw_only=True, tag="serial"):
    """A serial port."""

    port: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=1024,
            description="Device, best by its id, or a URL of pyserial: socket://host:port, rfc2217://host:port, "
            "hwgrep://VID:PID, loop://.",
            examples=["/dev/serial/by-id/usb-Arduino_Uno_1234-if00"],
        ),
    ]
    framing: Annotated[
        Literal["lines", "cobs"],
        Meta(description='What separates records: "lines", or "cobs": frames that end with a zero byte, for binary.'),
    ] = "lines"
    stream: Annotated[
        str, Meta(description="Stream name of the device behind the port; empty: the name of the source.")
    ] = ""
    baud_rate: Annotated[int, Meta(ge=50, le=12_000_000, description="Bits per second.")] = 115_200
    data_bits: Annotated[Literal[5, 6, 7, 8], Meta(description="Data bits.")] = 8
    parity: Annotated[Literal["none", "even", "odd"], Meta(description="Parity bit.")] = "none"
    stop_bits: Annotated[Literal[1, 2], Meta(description="Stop bits.")] = 1
    exclusive: Annotated[bool, Meta(description="Whether the port is locked against other programs.")] = True
    max_frame_bytes: Annotated[int, Meta(ge=16, le=1_048_576, description="Longer records, in bytes, are dropped.")] = (
        4096
    )
    reconnect_max_delay_s: Annotated[
        Seconds,
        Meta(description="Longest pause between attempts to open a port that is gone, in seconds; starts at 0.5 s."),
    ] = 10.0

    names_streams = True
    max_commit_interval_s = 0.1

    @property
    def path_keys(self) -> Sequence[str]:
        """A port that begins with a point is a path."""
        return ("port",) if self.port.startswith(".") else ()

    @property
    def unique(self) -> Unique:
        """A port has one reader."""
        return Unique("port", self.port)

    @property
    def reconnect_delay_s(self) -> float:
        """As the key says."""
        return self.reconnect_max_delay_s

    def problems(self) -> Iterator[Problem]:
        """Binary records come in COBS frames, and nothing else does."""
        if (self.format == "binary") != (self.framing == "cobs"):
            wanted = quoted("cobs" if self.format == "binary" else "lines")
            yield Problem(("framing",), f"{wanted}, as format = {quoted(self.format)}", quoted(self.framing))

    def build(self, context: SourceContext) -> SerialSource:
        """Return the source."""
        return SerialSource(self, name=context.name)

    def delivery_warnings(self, broker: BrokerConfig | None) -> Iterator[str]:
        """A serial line has no acknowledgements."""
        yield "a serial port has no acknowledgements: what is sent while the port is closed is lost (at most once)"

    def checks(self) -> Iterator[Check]:
        """Whether the port exists and may be opened."""
        from stream_gru.connectors.sources.serial import check_serial  # reads the system's tables of users

        yield check_serial(self)

    def continues(self, before: SourceTable) -> bool:
        """Messages are numbered, whatever they are."""
        return True


class SerialSource:
    """Frames of one port, each a message with the time at which its last bytes were read.

    Positions number the messages.  ``opener`` makes a port of a name or URL as `serial.serial_for_url` does.  After a
    loss `open` starts over.  Raises ConfigError for a URL that pyserial does not know.
    """

    def __init__(
        self,
        config: SerialSourceConfig,
        *,
        name: str,
        wall_ns: Callable[[], int] = time.time_ns,
        opener: Callable[..., Any] = serial.serial_for_url,
    ) -> None:
        self._config, self._name, self._wall_ns, self._opener = config, name, wall_ns, opener
        self._scheme = config.port.partition("://")[0].lower() if "://" in config.port else ""
        known = self._scheme.isidentifier() and importlib.util.find_spec(f"serial.urlhandler.protocol_{self._scheme}")
        if "://" in config.port and not known:
            raise ConfigError(f"port: expected a device or a URL that pyserial knows, got {config.port!r}")
        self._framer = self._new_framer()
        self._port: Any = None
        self._selectable = False
        self._frames: deque[RawMessage] = deque()
        self._number = 0
        self._logged = False

    def open(self, position: Position | None) -> None:
        """Open the port; messages are numbered from ``position`` on.

        Raises SourceUnavailable with advice, and ConfigError for settings that the port does not support.
        """
        self.close()
        self._log_risks()
        config = self._config
        try:
            self._port = self._opener(
                config.port,
                baudrate=config.baud_rate,
                bytesize=config.data_bits,
                parity=_PARITY[config.parity],
                stopbits=config.stop_bits,
                timeout=0,
                rtscts=False,
                # pyserial accepts it for a network port without effect.
                exclusive=(config.exclusive or None) if self._scheme not in _NETWORK else None,
            )
        except (OSError, termios.error) as error:
            raise SourceUnavailable(self._reason(error)) from error
        except ValueError as error:
            raise ConfigError(f"{config.port}: cannot be opened with these settings: {error}") from error
        self._selectable = _has_descriptor(self._port)
        self._framer = self._new_framer()
        self._number = max(self._number, position.offset if position is not None else 0)

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return received frames, waiting at most ``timeout_s`` seconds.

        Raises SourceUnavailable when the device is lost; an incomplete frame is then dropped.
        """
        if not self._frames:
            self._take(self._read(timeout_s))
        return [self._frames.popleft() for _ in range(min(limit, len(self._frames)))]

    def commit(self, position: Position) -> None:
        """A serial line has no acknowledgement: at most once."""

    def close(self) -> None:
        """Close the port."""
        port, self._port = self._port, None
        if port is None:
            return
        connection = getattr(port, "_socket", None)
        with suppress(OSError, termios.error):  # it may be lost
            port.close()
        if connection is not None:  # pyserial leaves a connection open that the peer has closed
            connection.close()

    def health(self) -> SourceHealth:
        """Connected while the port is open."""
        return SourceHealth(connected=self._port is not None, queued=len(self._frames))

    def _read(self, timeout_s: float) -> bytes:
        port = self._port
        if port is None:
            raise SourceUnavailable(f"{self._config.port}: not open")
        try:
            if self._selectable:
                ready = select.select([port], [], [], timeout_s)[0]
                return bytes(port.read(_CHUNK_BYTES)) if ready else b""
            if port.timeout != timeout_s:  # rfc2217:// sends a request each time it is set
                port.timeout = timeout_s
            return bytes(port.read(max(1, min(port.in_waiting, _CHUNK_BYTES))))
        except (OSError, termios.error) as error:  # SerialException is an OSError
            self.close()
            raise SourceUnavailable(f"{self._config.port}: lost: {error}") from error

    def _take(self, data: bytes) -> None:
        arrival_ns = self._wall_ns()
        key = self._config.stream or self._name
        for frame in self._framer.feed(data) if data else ():
            self._number += 1
            payload, fault = (b"", frame) if isinstance(frame, DropReason) else (frame, None)
            position = Position(self._name, self._number)
            topic = self._config.port
            self._frames.append(RawMessage(payload, key, b"", arrival_ns, position, "", fault, self._name, topic))

    def _new_framer(self) -> Framer:
        kind = CobsFramer if self._config.framing == "cobs" else LineFramer
        return kind(self._config.max_frame_bytes)

    def _log_risks(self) -> None:
        """Log once what this port cannot guarantee."""
        if self._logged:
            return
        self._logged = True
        log.info("%s: at most once: what is sent while the port is closed is lost", self._name)
        if self._scheme in _NETWORK and not _is_loopback(urlsplit(self._config.port).hostname or ""):
            log.warning("%s: no authentication: anyone on the network can read and write it", self._name)

    def _reason(self, error: Exception) -> str:
        port, code = self._config.port, error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO) and not self._scheme:
            found = _candidates()
            return f"{port}: no such device; existing ports: {', '.join(found) or 'none'}"
        hint = _HINTS.get(code) if code is not None else None
        return f"{port}: cannot be opened: {hint or error}"


def _has_descriptor(port: Any) -> bool:
    """Whether `select` can wait for it; otherwise `read` blocks."""
    try:
        return isinstance(port.fileno(), int)
    except (AttributeError, OSError, ValueError):
        return False


def _candidates() -> list[str]:
    """Ports of this machine, stable names first; at most eight."""
    found = [str(path) for folder, pattern in _PLACES for path in sorted(Path(folder).glob(pattern))]
    return found[:8]


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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
