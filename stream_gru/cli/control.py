"""``stream-gru reset``, ``pause``, ``resume`` and ``health``: commands to a running daemon.

The requests use the standard library only, so that these commands start fast.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

import click

from stream_gru.config import Config, load_config
from stream_gru.connectors.credentials import read_secret
from stream_gru.connectors.registry import CATALOG
from stream_gru.core.errors import ConfigError, StreamGruError
from stream_gru.runtime.control.commands import Action

if TYPE_CHECKING:
    from pathlib import Path

    from stream_gru.config import Config

_OK, _UNAUTHORIZED, _FORBIDDEN = 200, 401, 403
_HELP = {
    Action.RESET: "Reset one or all streams of the running daemon.\n\nA stream is reset before its next sample.",
    Action.PAUSE: "Pause one or all streams of the running daemon.\n\nIts samples are dropped and counted.",
    Action.RESUME: "Resume one or all paused streams of the running daemon.",
}
_MISSING = """\
{}: control.token_file: expected a file with the token of the daemon, got none; create it:
    (umask 077; head -c 32 /dev/urandom | base64 > control.token)
add it to the configuration, and restart the daemon:
    [control]
    token_file = "control.token\""""


@dataclass(frozen=True, slots=True)
class CommandClient:
    """Sends commands to one daemon, with its token."""

    remote: Remote
    headers: Mapping[str, bytes]

    def send(self, action: Action, body: Mapping[str, object], query: str = "") -> tuple[bool, str]:
        """Send a command.  Returns whether it succeeded, and the JSON text of the response.

        Raises StreamGruError without a response, or when the daemon rejects the token.
        """
        status, text = self.remote.request("POST", f"/api/v1/{action}{query}", body, self.headers)
        if status == _UNAUTHORIZED:
            raise StreamGruError(
                f"{self.remote}: control.token_file: the daemon rejects this token; "
                "restart the daemon after a change of the token"
            )
        if status == _FORBIDDEN:
            raise StreamGruError(
                f"{self.remote}: rejected: {response_text(text)}; "
                "restart the daemon after a change of its configuration"
            )
        return status == _OK, text


def command_client(settings: Config, path: Path) -> CommandClient:
    """A client for the daemon of a configuration.  Raises ConfigError without a token or an address."""
    remote = remote_of(settings, path)
    if not settings.control.token_file:
        raise ConfigError(_MISSING.format(path))
    token = read_secret(settings.control.token_file)
    return CommandClient(
        remote, {"Authorization": b"Bearer " + token.strip().encode(), "Content-Type": b"application/json"}
    )


def _command(action: Action) -> click.Command:
    @click.command(str(action), help=_HELP[action])
    @click.argument("config", type=click.Path(path_type=Path))
    @click.option("--stream", metavar="NAME", help="Select this stream.")
    @click.option("--all", "everything", is_flag=True, help="Select all streams.")
    @click.option("--json", "as_json", is_flag=True, help="Print the answer of the daemon as one JSON object.")
    def command(config: Path, stream: str | None, everything: bool, as_json: bool) -> int:
        if (stream is not None) == everything:
            raise click.UsageError("expected one of --stream NAME and --all")
        client = command_client(load_config(config, CATALOG), config)
        succeeded, text = client.send(action, {"all": True} if stream is None else {"stream": stream})
        if as_json:
            click.echo(text)
        elif succeeded:
            click.echo(response_text(text))
        else:
            raise StreamGruError(response_text(text))
        return 0 if succeeded else 1

    return command


reset = _command(Action.RESET)
pause = _command(Action.PAUSE)
resume = _command(Action.RESUME)


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


_DEFAULT = "http://127.0.0.1:9723"
_OK = 200


@click.command()
@click.argument("config", type=click.Path(path_type=Path), required=False)
@click.option("--url", help=f"Ask the daemon at this address instead of CONFIG.  [default: {_DEFAULT}]")
def health(config: Path | None, url: str | None) -> int:
    """Ask the running daemon whether it is healthy.

    The exit code is 0 when it is healthy, 1 when it is not or does not answer.
    """
    status, text = chosen_remote(config, url, _DEFAULT).request("GET", "/-/healthy")
    click.echo(text)
    return 0 if status == _OK else 1
