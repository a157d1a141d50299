"""Free ports, and a proxy with a bad line: slow, and stalled on request."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

_PIECES_PER_S = 50
_KERNEL_BYTES = 4096


def free_port() -> int:
    """A port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class SlowLink:
    """Forwards data between ``port`` and ``server_port``, both on loopback, at ``bytes_per_s`` each way.

    It buffers what it does not forward, as a line does; a closed side is noticed only by the data that comes through.
    """

    def __init__(self, server_port: int, bytes_per_s: int) -> None:
        self._server_port, self._piece = server_port, max(1, bytes_per_s // _PIECES_PER_S)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _KERNEL_BYTES)
        self.port = int(self._listening.getsockname()[1])
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._changed = threading.Condition()
        self._left: int | None = None  # bytes from the server that come through before it stalls; None: no end
        self._ended = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self.go_on()
        for one in (self._listening, *self._sockets):
            _shut(one)
        for thread in self._threads:
            thread.join(5)
        for one in self._sockets:
            one.close()
        self._listening.close()

    @property
    def stalled(self) -> bool:
        """Whether nothing comes through."""
        with self._changed:
            return self._left == 0

    def stall_after(self, nbytes: int) -> None:
        """Forward that many more bytes from the server, then nothing in either direction."""
        with self._changed:
            self._left = nbytes

    def go_on(self) -> None:
        """Forward the buffered data and everything after it."""
        with self._changed:
            self._left = None
            self._changed.notify_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:
                if self._ended.is_set():
                    return
                client.close()  # the server does not accept
                continue
            for one in (client, server):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._changed:
                self._sockets += [client, server]
            for source, target in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pump, args=(source, target, source is server), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, target: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(self._piece):
                while piece:
                    most = self._allowed(len(piece), down)
                    target.sendall(piece[:most])
                    piece = piece[most:]
        self._allowed(1, False)  # the end of a connection counts as data
        for one in (source, target):
            _shut(one)

    def _allowed(self, wanted: int, down: bool) -> int:
        """Wait until bytes may pass, and return how many."""
        self._ended.wait(1.0 / _PIECES_PER_S)
        with self._changed:
            self._changed.wait_for(lambda: self._left != 0 or self._ended.is_set())
            if not down or self._left is None or self._ended.is_set():
                return wanted
            most = min(wanted, self._left)
            self._left -= most
            return most


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
