"""``stream-gru reset``, ``pause`` and ``resume``: commands to a running daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from stream_gru.cli.remote import Remote, remote_of, response_text
from stream_gru.config import Config, load_config
from stream_gru.connectors.catalog import CATALOG
from stream_gru.connectors.credentials import read_secret
from stream_gru.core.errors import ConfigError, StreamGruError
from stream_gru.runtime.control.commands import Action

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
