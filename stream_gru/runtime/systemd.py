"""Notifies systemd: ready, reloading, stopping, watchdog.  See sd_notify(3) and WatchdogSec= in systemd.service(5).

Decision: own code, as the protocol is one datagram.  Nothing here raises: a missing receiver or a full socket must not
stop the daemon.
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
    """Send ``text`` to the datagram socket at ``address`` (``@``: abstract name); return whether it was sent."""
    if not address.startswith(("/", "@")):
        return False
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sender:
            sender.connect("\0" + address[1:] if address[0] == "@" else address)
            sender.send(text.encode("utf-8", "replace"))
    except (OSError, ValueError) as error:  # ValueError: a NUL inside a path
        log.debug("systemd: cannot send %r: %s", text, error)
        return False
    return True


class SystemdNotifier:
    """Sends this process' state to the manager named by ``environ``; does nothing without one.

    ``clock``: monotonic seconds; `reloading` needs CLOCK_MONOTONIC.
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
        """A reload has started; `ready` ends it."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={int(self._clock() * _US_PER_S)}")

    def stopping(self) -> None:
        """The daemon shuts down."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """Show ``text`` in ``systemctl status``."""
        self._send("STATUS=" + " ".join(text.split()))  # a newline would start another assignment

    def heartbeat(self) -> None:
        """Feed the watchdog, at most three times per timeout; called in each iteration of the loop."""
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
    """Return the watchdog's timeout in seconds; 0 if it does not watch this process."""
    timeout, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (timeout.isascii() and timeout.isdigit()) or (pid and pid != str(os.getpid())):
        return 0.0
    return int(timeout[:20]) / _US_PER_S  # at most the digits of 64 bits
