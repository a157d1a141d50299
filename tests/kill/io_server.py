"""Starts daemons whose n-th system call fails: a process that has loaded everything forks one for each case.

Commands and answers are JSON, a line each.  ``{"start": ...}`` is answered by ``{"pid": n}``, ``{"wait": pid,
"timeout_s": s}`` by ``{"code": n}``, null while it runs.  Needs the library of failing_io.c preloaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

from tests.kill.child import ABLATIONS


def main() -> None:
    """Serve until standard input ends; then kill the processes that still run."""
    alive: set[int] = set()
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" in asked:
            pid = _start(asked["start"])
            alive.add(pid)
            answer: dict[str, Any] = {"pid": pid}
        else:
            answer = {"code": _wait(asked["wait"], asked["timeout_s"])}
            if answer["code"] is not None:
                alive.discard(asked["wait"])
        print(json.dumps(answer), flush=True)  # noqa: T201 - the answer
    for pid in alive:
        os.kill(pid, signal.SIGKILL)


def _start(case: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        log = os.open(case["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nowhere = os.open(os.devnull, os.O_RDWR)
        for target, source in ((0, nowhere), (1, log), (2, log)):
            os.dup2(source, target)
        if case["without"]:
            ABLATIONS[case["without"]]()
        if case.get("folder"):
            _arm(case)
        from stream_gru.cli.main import main as cli

        sys.argv = ["stream-gru", "run", case["config"]]
        cli()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _arm(case: dict[str, Any]) -> None:
    library = ctypes.CDLL(None)
    texts = [case[name].encode() for name in ("folder", "counter")]
    done = library.failing_io_arm(texts[0], ctypes.c_long(case["nth"]), case["error"], case["sticky"], texts[1])
    assert done == 0, "the counter cannot be made"


def _wait(pid: int, timeout_s: float) -> int | None:
    end = time.monotonic() + timeout_s
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.002)


if __name__ == "__main__":
    main()
