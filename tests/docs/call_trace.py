"""Run the command line and write every call of a function of the package, in order, to a file.

``python -m tests.docs.call_trace OUT run gateway.toml`` writes lines such as ``runtime/daemon.py Daemon.commit``.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType

from tests.support.paths import PACKAGE

PREFIX = f"{PACKAGE}/"


def main(out: Path, arguments: list[str]) -> int:
    """Trace one command; return its exit code."""
    calls: list[str] = []

    def record(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PREFIX):
            name = code.co_qualname.replace(".<locals>", "")
            calls.append(f"{code.co_filename.removeprefix(PREFIX)} {name}")

    threading.setprofile(record)
    sys.setprofile(record)
    from stream_gru.cli.group import invoke

    code = invoke(arguments)
    sys.setprofile(None)
    out.write_text("\n".join(calls))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
