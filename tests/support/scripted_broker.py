"""A broker that does what a test says, also what a real one never does: raw packets on a loopback port."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_CONNECT, _PUBLISH, _PUBACK, _SUBSCRIBE, _UNSUBSCRIBE, _PING = 0x10, 0x30, 0x40, 0x80, 0xA0, 0xC0
_MQTT5 = 5
_SESSION_TAKEN_OVER = 0x8E


class ScriptedBroker:
    """Accepts each client, grants each subscription, and acknowledges each PUBLISH; one connection at a time.

    ``connects``: connections so far; ``subscribed``: those on which a client has subscribed; ``acknowledged``:
    identifiers that clients have acknowledged.
    """

    def __init__(self) -> None:
        self.connects = 0
        self.subscribed = 0
        self.acknowledged: list[int] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listening.getsockname()[1]}"
        self._socket: socket.socket | None = None
        self._newest = True
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        self._thread.join(5)
        self._listening.close()

    def publish(self, topic: bytes, payload: bytes, mid: int, properties: bytes = b"") -> None:
        """Send a message of QoS 1; the topic may be any bytes."""
        body = len(topic).to_bytes(2, "big") + topic + mid.to_bytes(2, "big")
        body += _length(len(properties)) + properties if self._newest else b""
        self._send(_PUBLISH | 2, body + payload)

    def take_over(self) -> None:
        """Disconnect the client because another one has connected with its id."""
        self._send(0xE0, bytes([_SESSION_TAKEN_OVER]))
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connection without a reason."""
        if self._socket is not None:
            with suppress(OSError):  # the client was faster
                self._socket.shutdown(socket.SHUT_RDWR)

    def _send(self, first: int, body: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(bytes([first]) + _length(len(body)) + body)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            with client:
                self._socket = client
                with suppress(OSError):  # the client has gone
                    self._serve(client)
                self._socket = None

    def _serve(self, client: socket.socket) -> None:
        while (packet := _receive(client)) is not None:
            first, body = packet
            kind = first & 0xF0
            if kind == _CONNECT:
                self._newest = body[6] == _MQTT5
            empty = b"\0" if self._newest else b""  # no properties
            if kind == _CONNECT:
                known = min(self.connects, 1)  # it has the session of an earlier connection
                self._send(0x20, bytes([known, 0]) + empty)
                self.connects += 1
            elif kind == _SUBSCRIBE:
                self._send(0x90, body[:2] + empty + b"\1")
                self.subscribed += 1
            elif kind == _UNSUBSCRIBE:
                self._send(0xB0, body[:2] + (b"\0\0" if self._newest else b""))
            elif kind == _PUBLISH and first & 6:
                at = 2 + int.from_bytes(body[:2], "big")
                self._send(_PUBACK, body[at : at + 2])
            elif kind == _PUBACK:
                self.acknowledged.append(int.from_bytes(body[:2], "big"))
            elif kind == _PING:
                self._send(0xD0, b"")


def _length(size: int) -> bytes:
    """A length as MQTT writes it: seven bits a byte, lowest first."""
    found = bytearray()
    while True:
        size, low = divmod(size, 128)
        found.append(low | (128 if size else 0))
        if not size:
            return bytes(found)


def _receive(client: socket.socket) -> tuple[int, bytes] | None:
    """The first byte of the next packet and its body; None at the end."""
    first = client.recv(1)
    if not first:
        return None
    size = shift = 0
    while True:
        (digit,) = client.recv(1, socket.MSG_WAITALL)
        size |= (digit & 127) << shift
        shift += 7
        if not digit & 128:
            return first[0], client.recv(size, socket.MSG_WAITALL) if size else b""
