"""What systemd is told: ready, reloading, stopping, alive.  See sd_notify(3) and WatchdogSec= in systemd.service(5).

Decision: twenty lines of our own, as the protocol is one datagram and its libraries are larger than what they do.
Nobody who listens, or a socket that is full, is no reason for a daemon to stop: nothing here raises.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping

log = logging.getLogger(__name__)

_US_PER_S = 1_000_000


def sd_notify(address: str, text: str) -> bool:
    """Send ``text`` to the datagram socket at ``address`` (``@`` begins an abstract name); whether it was taken."""
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.connect("\0" + address[1:] if address[0] == "@" else address)
            sender.send(text.encode("utf-8", "replace"))
    except (OSError, ValueError) as error:  # ValueError: a NUL inside a path
        log.debug("systemd was not told %r: %s", text, error)
        return False
    return True


class SystemdNotifier:
    """Speaks for this process to the manager that ``environ`` names; where it names none, it is silent.

    ``clock``: monotonic seconds, CLOCK_MONOTONIC where a reload is to be announced.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._clock = clock
        self._every_s = _watchdog_s(environ) / 3
        self._due = float("-inf")

    def ready(self) -> None:
        """Start or reload is complete."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(self._clock() * _US_PER_S)}")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show ``text`` in ``systemctl status``."""
        self._send("STATUS=" + " ".join(text.split()))  # a line end would begin another assignment

    def alive(self) -> None:
        """Called at the top of each loop; feeds the watchdog, three times in the time it allows."""
        if not self._every_s:
            return
        now = self._clock()
        if now >= self._due:
            self._due = now + self._every_s
            self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if self._address:
            sd_notify(self._address, text)


def _watchdog_s(environ: Mapping[str, str]) -> float:
    """Return the time the watchdog allows between two signs of life; 0 when it does not watch this process."""
    allowed, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (allowed.isascii() and allowed.isdigit()) or (pid and pid != str(os.getpid())):
        return 0.0
    return int(allowed[:20]) / _US_PER_S  # no more digits than 64 bits have
