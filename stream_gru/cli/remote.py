"""HTTP requests to a running daemon, with the standard library only, so that these commands start fast."""

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

import click

from stream_gru.connectors.catalog import CATALOG
from stream_gru.core.errors import ConfigError, StreamGruError

if TYPE_CHECKING:
    from pathlib import Path

    from stream_gru.config import Config

_TIMEOUT_S = 5.0
_RETRY_S = 0.1
# Three times the keep-alive interval of the output stream.
_READ_TIMEOUT_S = 30.0
_MAX_RESPONSE_BYTES = 33_554_432
_MAX_LINE_BYTES = 16_777_216
_LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - addresses of a server, not bound here


@dataclass(frozen=True, slots=True)
class Remote:
    """The HTTP address of a daemon."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def request(
        self, method: str, path: str, body: object = None, headers: Mapping[str, bytes] | None = None
    ) -> tuple[int, str]:
        """Send a request and return status and text of the response.  Raises StreamGruError without a response."""
        data = None if body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_TIMEOUT_S)
        with closing(connection):
            try:
                connection.request(method, path, data, dict(headers or {}))
                response = connection.getresponse()
                return response.status, response.read(_MAX_RESPONSE_BYTES).decode(errors="replace").strip()
            except (OSError, http.client.HTTPException) as error:
                raise self._no_response(error) from error

    def wait_until_listening(self, seconds: float) -> None:
        """Wait until the daemon accepts connections, at most ``seconds``; the request that follows reports errors."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                socket.create_connection((self.host, self.port), timeout=_TIMEOUT_S).close()
            except ConnectionRefusedError:
                time.sleep(_RETRY_S)
            except OSError:
                return
            else:
                return

    def events(self, stream: str | None) -> Generator[tuple[str, str]]:
        """Yield server-sent events as (event, data); the event of an output row is empty.

        Raises StreamGruError without a response, when the daemon ends, and when nothing arrives for 30 s.
        """
        path = "/api/v1/outputs" + (f"?stream={quote(stream, safe='')}" if stream is not None else "")
        connection = http.client.HTTPConnection(self.host, self.port, timeout=_READ_TIMEOUT_S)
        with closing(connection):
            try:
                connection.request("GET", path)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise self._no_response(error) from error
            if response.status != http.client.OK:
                text = response.read(_MAX_RESPONSE_BYTES).decode(errors="replace")
                raise StreamGruError(f"{self}: {response_text(text)}")
            try:
                yield from _parse_events(response)
            except (OSError, http.client.HTTPException) as error:
                raise StreamGruError(f"{self}: the connection to the daemon was lost ({_reason(error)})") from error
        raise StreamGruError(f"{self}: the daemon has ended")

    def _no_response(self, error: Exception) -> StreamGruError:
        if isinstance(error, ConnectionRefusedError):
            return StreamGruError(f"{self}: connection refused; start the daemon with `stream-gru run CONFIG`")
        return StreamGruError(f"{self}: no HTTP response ({_reason(error)}); check the address")


def chosen_remote(config: Path | None, url: str | None, default: str = "") -> Remote:
    """The daemon of a configuration file or at ``url``, if neither is given at ``default``.

    Raises click.UsageError for both, or for neither without a default, and ConfigError.
    """
    if config is not None and url is not None:
        raise click.UsageError("expected CONFIG or --url, not both")
    if config is not None:
        from stream_gru.config import load_config

        return remote_of(load_config(config, CATALOG), config)
    if url is None and not default:
        raise click.UsageError("expected CONFIG or --url")
    return remote_at(default if url is None else url)


def remote_of(config: Config, path: Path) -> Remote:
    """The address of the daemon of a configuration.  Raises ConfigError when it has none, or no fixed port."""
    if not config.metrics.enabled:
        raise ConfigError(f"{path}: metrics.enabled: expected true, since the command uses the daemon's HTTP address")
    remote = remote_at(f"http://{config.metrics.listen}")
    if remote.port == 0:
        raise ConfigError(f"{path}: metrics.listen: expected a fixed port, got 0, which takes any free port")
    return Remote(_LOOPBACK_OF.get(remote.host, remote.host), remote.port)


def remote_at(url: str) -> Remote:
    """Parse an address of the form ``http://host:port``.  Raises ConfigError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "http" or not parts.hostname or port is None or parts.path.strip("/") or parts.query:
        raise ConfigError(f'expected an address such as "http://127.0.0.1:9723", got {url!r:.200}')
    return Remote(parts.hostname, port)


def response_text(text: str) -> str:
    """The ``text`` of a JSON response, or the first 200 characters of any other one."""
    try:
        return str(json.loads(text)["text"])
    except (ValueError, KeyError, TypeError):
        return " ".join(text.split())[:200]


def _parse_events(response: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    event = ""
    while line := response.readline(_MAX_LINE_BYTES):
        key, _, value = line.decode(errors="replace").rstrip("\r\n").partition(": ")
        if key == "event":
            event = value
        elif key == "data":
            yield event, value
            event = ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
