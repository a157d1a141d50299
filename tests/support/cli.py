"""The command line, in a process of its own or in this one, and rows of the shipped pumps to feed it with."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from stream_gru.cli.main import run_cli

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


def run_here(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same in this process, at a twentieth of the cost; for commands that read no standard input."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    line = [str(argument) for argument in arguments]
    with (
        _process_state_restored(),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = run_cli(line)
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess(line, code, *texts)


@contextlib.contextmanager
def _process_state_restored() -> Iterator[None]:
    """Signal handlers and log handlers as before."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers, level, logged = (
        [signal.getsignal(number) for number in numbers],
        logging.root.level,
        logging.root.handlers,
    )
    logging.root.handlers = []
    try:
        yield
    finally:
        logging.root.handlers = logged
        logging.root.setLevel(level)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
