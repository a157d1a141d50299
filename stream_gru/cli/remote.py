"""Asking a running daemon over HTTP, with the standard library alone: these commands shall start fast."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from stream_gru.core.errors import ConfigError, StreamGruError

if TYPE_CHECKING:
    from pathlib import Path

    from stream_gru.config import Config

_TIMEOUT_S = 5.0
_AGAIN_S = 0.1
# The daemon sends something every ten seconds.
_SILENCE_S = 30.0
_MAX_ANSWER_BYTES = 33_554_432
_MAX_LINE_BYTES = 16_777_216
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a server listens on, not what we bind


@dataclass(frozen=True, slots=True)
class Remote:
    """A daemon's address."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, bytes] | None = None
    ) -> tuple[int, str]:
        """Status and text of an answer.  Raises StreamGruError when nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT_S)
        with closing(connection):
            try:
                connection.request(method, path, data, dict(headers or {}))
                answer = connection.getresponse()
                return answer.status, answer.read(_MAX_ANSWER_BYTES).decode(errors="replace").strip()
            except (OSError, http.client.HTTPException) as error:
                raise self._unheard(error) from error

    def await_it(self, seconds: float) -> None:
        """Give a daemon that has just been started some time to listen; what is wrong then is told by who asks."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                socket.create_connection((self.host, self.port), timeout=_TIMEOUT_S).close()
            except ConnectionRefusedError:
                time.sleep(_AGAIN_S)
            except OSError:
                return
            else:
                return

    def listen(self, stream: str | None) -> Generator[tuple[str, str]]:
        """Yield the outputs as they come: (event, data); the event of a row is empty.

        Raises StreamGruError when nobody answers, and when the daemon ends or says nothing for too long.
        """
        path = "/api/v1/outputs" + (f"?stream={quote(stream, safe='')}" if stream is not None else "")
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_SILENCE_S)
        with closing(connection):
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._unheard(error) from error
            if answer.status != http.client.OK:
                raise StreamGruError(f"{self}: {told(answer.read(_MAX_ANSWER_BYTES).decode(errors='replace'))}")
            try:
                yield from _events(answer)
            except (OSError, http.client.HTTPException) as error:
                raise StreamGruError(f"{self}: the daemon has gone ({_reason(error)})") from error
        raise StreamGruError(f"{self}: the daemon has ended")

    def _unheard(self, error: Exception) -> StreamGruError:
        if isinstance(error, ConnectionRefusedError):
            return StreamGruError(f"nothing listens at {self}: is the daemon (stream-gru run) running?")
        return StreamGruError(f"{self}: no answer ({_reason(error)})")


def remote_of(config: Config, path: Path) -> Remote:
    """Where the daemon of a configuration listens.  Raises ConfigError when it does not, or on a port it chooses."""
    if not config.metrics.enabled:
        raise ConfigError(f"{path}: metrics.enabled: expected true, as the daemon is reached by its HTTP address")
    remote = remote_at(f"http://{config.metrics.listen}")
    if remote.port == 0:
        raise ConfigError(f"{path}: metrics.listen: expected a fixed port, got 0, which takes any free one")
    return Remote(_EVERYWHERE.get(remote.host, remote.host), remote.port)


def remote_at(url: str) -> Remote:
    """The address in ``http://host:port``.  Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "http" or not parts.hostname or port is None or parts.path.strip("/") or parts.query:
        raise ConfigError(f'expected an address such as "http://127.0.0.1:9723", got {url!r:.200}')
    return Remote(parts.hostname, port)


def told(text: str) -> str:
    """What an answer says: the ``text`` of its object, or all of it."""
    try:
        return str(json.loads(text)["text"])
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:200]


def _events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    event = ""
    while line := answer.readline(_MAX_LINE_BYTES):
        key, _, value = line.decode(errors="replace").rstrip("\r\n").partition(": ")
        if key == "event":
            event = value
        elif key == "data":
            yield event, value
            event = ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
