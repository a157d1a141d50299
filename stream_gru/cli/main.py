"""The entry point of the command line: early signals, closed outputs, errors and exit codes.

Exit codes: 0 ok, 1 failure, 2 usage or configuration, 130 interrupted.  Results go to standard output, everything else
to standard error.

Decision: this module imports almost nothing, so that signals are handled from the first moment.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # type checkers take it as true; `typing` is not loaded

if TYPE_CHECKING:
    from types import FrameType

    from stream_gru.core.errors import StreamGruError

# Each command is imported on demand: a gateway does not load what a workstation needs.
COMMANDS = {
    "bench": "stream_gru.cli.bench:bench",
    "check": "stream_gru.cli.configuration:check",
    "config": "stream_gru.cli.configuration:config",
    "demo": "stream_gru.cli.demo:demo",
    "doctor": "stream_gru.cli.doctor:doctor",
    "evaluate": "stream_gru.cli.train:evaluate",
    "export": "stream_gru.cli.bundle:export",
    "generate": "stream_gru.cli.generate:generate",
    "health": "stream_gru.cli.control:health",
    "inspect": "stream_gru.cli.bundle:inspect",
    "pause": "stream_gru.cli.control:pause",
    "probe": "stream_gru.cli.probe:probe",
    "recipe": "stream_gru.cli.examples:recipe",
    "record": "stream_gru.cli.probe:record",
    "replay": "stream_gru.cli.run:replay",
    "reset": "stream_gru.cli.control:reset",
    "resume": "stream_gru.cli.control:resume",
    "run": "stream_gru.cli.run:run",
    "simulate": "stream_gru.cli.examples:simulate",
    "state": "stream_gru.cli.state:state",
    "tap": "stream_gru.cli.tap:tap",
    "train": "stream_gru.cli.train:train",
}
# Commands that end with exit code 0 on SIGTERM.
_DAEMONS = frozenset({"demo", "probe", "record", "replay", "run"})


def main() -> None:
    """Run the command line of this process: errors become one line on standard error, never a traceback."""
    exit_on_early_signals(sys.argv[1:2])
    reopen_closed_outputs()
    code = run_cli(sys.argv[1:])
    _discard_unwritten_output()
    sys.exit(code)


def exit_on_early_signals(command: list[str]) -> None:
    """Exit at once on a signal during the imports, when nothing is open that needs closing.

    `restore_interrupt` ends this for SIGINT; a daemon installs its own handler of SIGTERM.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit_now)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and _DAEMONS.intersection(command):
        signal.signal(signal.SIGTERM, _exit_now)
    if command == ["run"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # until the daemon can reload


def restore_interrupt() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, after the imports of a command."""
    if signal.getsignal(signal.SIGINT) is _exit_now:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit_now(number: int, _: FrameType | None) -> None:
    """Exit without an exception, which the import of a native module would replace by its own."""
    if number == signal.SIGTERM:
        os._exit(0)
    try:
        os.write(2, b"stream-gru: interrupted\n")
    finally:
        os._exit(130)


def reopen_closed_outputs() -> None:
    """Reopen closed outputs on /dev/null: writing to standard output fails, writing to standard error is discarded.

    Otherwise the next file that is opened would get their descriptor and receive what is printed.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_WRONLY)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - open until the process ends


def run_cli(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        from stream_gru.cli.group import invoke
        from stream_gru.core.errors import BundleError, ConfigError, StreamGruError
    except KeyboardInterrupt:
        return _interrupted()
    try:
        code = invoke(arguments)
        sys.stdout.flush()  # a write error must set the exit code
        return code
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        return 1
    except (ConfigError, BundleError) as error:
        return _report(error, 2)
    except StreamGruError as error:
        return _report(error, 1)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        return _report(f"{error.filename or 'standard output or a file'}: {reason}", 1)


def _interrupted() -> int:
    return _report("interrupted", 130)


def _report(error: StreamGruError | str, code: int) -> int:
    """Print an error on standard error and return the exit code."""
    from contextlib import suppress

    for line in str(error).splitlines():
        with suppress(OSError):  # standard error is closed
            print(f"stream-gru: {line}" if line else "", file=sys.stderr, flush=True)  # noqa: T201 - before click
    return code


def _discard_unwritten_output() -> None:
    """Discard buffered output that cannot be written; the interpreter would print an error and exit with 120."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
