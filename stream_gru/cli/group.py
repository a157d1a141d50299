"""The group of all commands; each is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import click

from stream_gru import __version__
from stream_gru.cli.main import COMMANDS, loaded


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        loaded()
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "STREAM_GRU"})
@click.version_option(__version__, prog_name="stream-gru")
def cli() -> None:
    """Train a stateful GRU on recorded sensors, run it on live ones."""


def invoke(arguments: list[str]) -> int:
    """Run a command line and return its exit code; mistakes of usage are told here.  Raises what the command raises."""
    try:
        result = cli.main(arguments, prog_name="stream-gru", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as error:
        raise KeyboardInterrupt from error
