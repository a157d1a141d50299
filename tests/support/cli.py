"""The command line, in a process of its own, and rows of the shipped pumps to feed it with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PUMP_HEADER = "time,pump,flow,pressure,current,vibration,mode\n"
_ROW = "2026-03-01T{}Z,p,100,300,5,1.5,normal\n"

Run = Callable[..., tuple[int, str, str]]
"""The fixture ``run``: runs a command in this process; exit code, standard output, standard error."""


def pump_rows(count: int, first: int = 0) -> str:
    """CSV rows of one pump, one a second."""
    seconds = range(first, first + count)
    return "".join(_ROW.format(f"{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}") for s in seconds)


def command(*arguments: object) -> list[str]:
    """The command line in this interpreter."""
    return [sys.executable, "-m", "stream_gru", *map(str, arguments)]


def run_command(
    *arguments: object, stdin: str | None = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process; ``stdin=None`` closes standard input; a traceback is a failure."""
    line = command(*arguments)
    if stdin is None:
        line = ["sh", "-c", 'exec "$@" <&-', "sh", *line]
    done = subprocess.run(line, input=stdin or "", capture_output=True, text=True, check=False, timeout=120, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    return done
