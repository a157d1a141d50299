"""What all commands share: the group that imports a command on demand, and common options."""

from __future__ import annotations

import difflib
import math
from importlib import import_module
from typing import Any

import click

from stream_gru import __version__
from stream_gru.cli.main import COMMANDS, restore_interrupt


class CommandGroup(click.Group):
    """A group of commands that suggests the nearest name for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` begins with.  Raises click.UsageError when there is none of that name."""
        name, known = args[0], self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            near = difflib.get_close_matches(name, known)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)


class _LazyGroup(CommandGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        restore_interrupt()
        return command


@click.group(
    cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "STREAM_GRU"}
)
@click.version_option(__version__, prog_name="stream-gru", help="Print the version and exit.")
def cli() -> None:
    """Train a stateful GRU on recorded sensor data and run it on live data.

    `stream-gru COMMAND --help` describes a command.  `stream-gru demo` needs no configuration.
    """


def invoke(arguments: list[str]) -> int:
    """Run a command line and return its exit code.  Prints usage errors; other exceptions of a command pass through."""
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


def check_engine(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Check the name of an engine, of this package or of a plugin.  Raises click.BadParameter."""
    from stream_gru.model.engines.registry import ENGINES

    if value not in (None, "auto") and value not in ENGINES:
        raise click.BadParameter(f"expected one of auto, {', '.join(ENGINES.names())}, got {value!r}", ctx, param)
    return value


ENGINE = click.option(
    "--engine",
    callback=check_engine,
    metavar="NAME",
    default="auto",
    show_default=True,
    help="Use this engine: auto, litert, numpy, onnx, keras or a plugin.",
)


class FiniteRange(click.FloatRange):
    """A range of numbers without ``nan`` and ``inf``, which click accepts where no bound excludes them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a number.  Raises click.BadParameter."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number
