"""The help texts: whole sentences that fit a terminal of 80 columns, and suggestions for mistyped names."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from stream_gru.cli.group import cli

WIDTH = 80


def all_commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """A command and all commands below it, each with its context."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from all_commands(child, click.Context(child, info_name=name, parent=context))


COMMAND_TREE = list(all_commands(cli, click.Context(cli, info_name="stream-gru", terminal_width=WIDTH)))


@pytest.mark.parametrize(
    ("command", "context"), COMMAND_TREE, ids=[context.command_path for _, context in COMMAND_TREE]
)
def test_help_is_whole_sentences_that_fit(command: click.Command, context: click.Context) -> None:
    """At 80 columns no line is cut or too long; each command and option is described by a sentence."""
    for line in command.get_help(context).splitlines():
        assert len(line) <= WIDTH, line
        assert not line.endswith("...") or line.startswith("Usage: "), line
    assert (command.help or "").split("\n\n")[0].endswith("."), command.help
    for option in command.params:
        if isinstance(option, click.Option):
            described = (option.help or "").split("  [")[0]
            assert described[:1].isupper(), (option.opts, described)
            assert described.endswith("."), (option.opts, described)


def test_the_listing_shows_the_first_sentence_of_each_command() -> None:
    """The listing of a group shows the first sentence of each command, uncut."""
    shown = CliRunner().invoke(cli, ["--help"], terminal_width=WIDTH).output
    for command, context in COMMAND_TREE:
        if context.parent is not None and context.parent.command is cli:
            assert f"  {context.info_name} " in shown
            assert (command.help or "").split("\n\n")[0] in shown
    assert "..." not in shown.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rpelay"], "No such command 'rpelay'. Did you mean replay?"),
        (["state", "exprot"], "No such command 'exprot'. Did you mean export?"),
        (["config", "trian"], "No such command 'trian'. Did you mean train?"),
        (["qqq"], "Try 'stream-gru --help' for help.\n\nError: No such command 'qqq'.\n"),
        (["simulate", "qqq"], "Try 'stream-gru simulate --help' for help.\n\nError: No such command 'qqq'.\n"),
        (["train", "x.toml", "--epoch", "3"], "No such option '--epoch'."),
        (["train", "x.toml", "--epoch", "3"], "--epochs"),
        (["--vresion"], "--version"),
    ],
)
def test_a_mistyped_name_gets_a_suggestion(arguments: list[str], message: str) -> None:
    """The message names the nearest command or option, and how to list them; exit code 2."""
    done = CliRunner().invoke(cli, arguments, prog_name="stream-gru")
    assert done.exit_code == 2
    assert message in done.output
