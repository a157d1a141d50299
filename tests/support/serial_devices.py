"""Pseudo-terminals and a TCP server in place of devices that are plugged in, unplugged and plugged in again."""

from __future__ import annotations

import os
import select
import socket
import time
import tty
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self


class SerialDevice:
    """A pseudo-terminal whose far end the test holds; ``link`` is a name that survives replugging.

    Constructing plugs it in.  `send` plays the device, `pull` unplugs it, `plug` gives a new one the same name.
    """

    def __init__(self, link: Path) -> None:
        self.link = link
        self._near = self._far = -1
        self.plug()

    def plug(self) -> None:
        """A new pseudo-terminal under the same name."""
        self._near, self._far = os.openpty()
        tty.setraw(self._far)
        os.set_blocking(self._near, False)
        fresh = self.link.with_name(self.link.name + ".new")
        fresh.symlink_to(os.ttyname(self._far))
        fresh.replace(self.link)
        os.close(self._far)

    def pull(self) -> None:
        """Unplug the device; its name points at nothing."""
        with suppress(OSError):
            os.close(self._near)
        self._near = -1

    def send(self, data: bytes) -> None:
        """Send all of ``data``, or fail after 5 s."""
        end = time.monotonic() + 5
        while data:
            assert time.monotonic() < end, "no reader"
            if select.select([], [self._near], [], 0.1)[1]:
                data = data[os.write(self._near, data) :]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.pull()


class TcpDevice:
    """A TCP server on the loopback that serves one connection at a time, as a serial device server does."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(5)
        self._connection: socket.socket | None = None
        self.port: int = self._server.getsockname()[1]
        self.url = f"socket://127.0.0.1:{self.port}"

    def accept(self) -> socket.socket:
        """Wait for the next connection."""
        self.drop()
        self._connection = self._server.accept()[0]
        return self._connection

    def drop(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def hang_up(self) -> None:
        """End the connection while another thread reads from it; that thread then reads the end."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.drop()
        self._server.close()
