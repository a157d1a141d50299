"""Fixtures of the tests of commands."""

from __future__ import annotations

import pytest

from stream_gru.cli.main import run_cli
from tests.support.cli import Run


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: exit code, standard output, standard error."""

    def run_here(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run_cli([str(argument) for argument in arguments])
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return run_here
