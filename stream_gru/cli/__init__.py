"""The command line: a command's body parses, builds, calls, and sets the exit code.

Exit codes: 0 ok, 1 failure, 2 usage or configuration, 130 interrupted.  Results go to standard output, everything else
to standard error.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from stream_gru import __version__
from stream_gru.errors import BundleError, ConfigError, StreamGruError

# Commands are imported when they are asked for: a gateway does not load what a workstation needs.
COMMANDS = {
    "bench": "stream_gru.cli.bench:bench",
    "check": "stream_gru.cli.configuration:check",
    "config": "stream_gru.cli.configuration:config",
    "demo": "stream_gru.cli.demo:demo",
    "evaluate": "stream_gru.cli.evaluate:evaluate",
    "inspect": "stream_gru.cli.inspect:inspect",
    "replay": "stream_gru.cli.replay:replay",
    "run": "stream_gru.cli.run:run",
    "simulate": "stream_gru.cli.simulate:simulate",
    "train": "stream_gru.cli.train:train",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "STREAM_GRU"})
@click.version_option(__version__, prog_name="stream-gru")
def cli() -> None:
    """Train a stateful GRU on recorded sensors, run it on live ones."""


def main() -> None:
    """Entry point: errors become one line on standard error and an exit code, never a traceback."""
    sys.exit(run_cli(sys.argv[1:]))


def run_cli(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        result = cli.main(arguments, prog_name="stream-gru", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stream-gru: interrupted", err=True)
        return 130
    except BrokenPipeError:
        return 1
    except (ConfigError, BundleError) as error:
        _complain(error)
        return 2
    except StreamGruError as error:
        _complain(error)
        return 1


def _complain(error: StreamGruError) -> None:
    for line in str(error).splitlines():
        click.echo(f"stream-gru: {line}" if line else line, err=True)
