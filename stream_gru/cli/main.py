"""The command line: a command's body parses, builds, calls, and sets the exit code.

Exit codes: 0 ok, 1 failure, 2 usage or configuration, 130 interrupted.  Results go to standard output, everything else
to standard error.

Decision: importing this loads next to nothing, so that signals are listened to from the first moment.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # type checkers take it as true, and the module `typing` need not be loaded

if TYPE_CHECKING:
    from types import FrameType

    from stream_gru.core.errors import StreamGruError

# Commands are imported when they are asked for: a gateway does not load what a workstation needs.
COMMANDS = {
    "bench": "stream_gru.cli.bench:bench",
    "check": "stream_gru.cli.configuration:check",
    "config": "stream_gru.cli.configuration:config",
    "demo": "stream_gru.cli.demo:demo",
    "doctor": "stream_gru.cli.doctor:doctor",
    "evaluate": "stream_gru.cli.evaluate:evaluate",
    "export": "stream_gru.cli.export:export",
    "generate": "stream_gru.cli.generate:generate",
    "health": "stream_gru.cli.health:health",
    "inspect": "stream_gru.cli.inspect:inspect",
    "pause": "stream_gru.cli.control:pause",
    "probe": "stream_gru.cli.probe:probe",
    "recipe": "stream_gru.cli.recipe:recipe",
    "record": "stream_gru.cli.record:record",
    "replay": "stream_gru.cli.replay:replay",
    "reset": "stream_gru.cli.control:reset",
    "resume": "stream_gru.cli.control:resume",
    "run": "stream_gru.cli.run:run",
    "state": "stream_gru.cli.state:state",
    "simulate": "stream_gru.cli.simulate:simulate",
    "tap": "stream_gru.cli.tap:tap",
    "train": "stream_gru.cli.train:train",
}
# Commands that SIGTERM ends well.
_DAEMONS = frozenset({"demo", "probe", "record", "replay", "run"})


def main() -> None:
    """Entry point: errors become one line on standard error and an exit code, never a traceback."""
    listen_early(sys.argv[1:2])
    hold_descriptors()
    code = run_cli(sys.argv[1:])
    _discard_what_cannot_be_written()
    sys.exit(code)


def listen_early(command: list[str]) -> None:
    """Leave at once when a signal comes while modules are loaded: nothing is open yet that had to be closed.

    `loaded` ends this for SIGINT; a daemon replaces the handler of SIGTERM by its own.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and _DAEMONS.intersection(command):
        signal.signal(signal.SIGTERM, _leave)
    if command == ["run"]:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # there is nothing yet that could be reloaded


def loaded() -> None:
    """From now on Ctrl-C is a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, _: FrameType | None) -> None:
    """No exception: the imports of native modules would turn it into one of their own."""
    if number == signal.SIGTERM:
        os._exit(0)
    try:
        os.write(2, b"stream-gru: interrupted\n")
    finally:
        os._exit(130)


def hold_descriptors() -> None:
    """Put something in the place of closed outputs: standard output refuses what is written, standard error is silent.

    Else the next file that is opened would get their number, and results would go nowhere without a word.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is not None:
            continue
        nowhere = os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_WRONLY)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
        setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - until the end


def run_cli(arguments: list[str]) -> int:
    """Run a command line and return its exit code."""
    try:
        from stream_gru.cli.group import invoke
        from stream_gru.core.errors import BundleError, ConfigError, StreamGruError
    except KeyboardInterrupt:
        return _interrupted()
    try:
        code = invoke(arguments)
        sys.stdout.flush()  # what cannot be written shall be known now, not after the last line of Python
        return code
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        return 1
    except (ConfigError, BundleError) as error:
        return _complain(error, 2)
    except StreamGruError as error:
        return _complain(error, 1)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        return _complain(f"{error.filename or 'standard output or a file'}: {reason}", 1)


def _interrupted() -> int:
    return _complain("interrupted", 130)


def _complain(error: StreamGruError | str, code: int) -> int:
    for line in str(error).splitlines():
        _say(f"stream-gru: {line}" if line else line)
    return code


def _say(line: str) -> None:
    from contextlib import suppress

    with suppress(OSError):  # nobody is left to be told
        print(line, file=sys.stderr, flush=True)  # noqa: T201 - click may not be loaded yet


def _discard_what_cannot_be_written() -> None:
    """Without this the interpreter complains at exit, in its own words and with its own exit code."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
