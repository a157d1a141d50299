"""One run of a daemon: from its start to the kill, or to its own end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.paths import ROOT

_SORROWS = ("Traceback", "unaccounted", "unexpected error", "damaged")


class Life:
    """A process of `tests.kill.child` with ``options``; its output is appended to ``log``.

    ``more``: options of ``stream-gru run``.
    """

    def __init__(self, config: Path, log: Path, *options: str, more: Sequence[str] = ()) -> None:
        self._progress, progress_fd = os.pipe()
        self._log, self._begin = log, log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-m", "tests.kill.child", "--tell", str(progress_fd), *options]
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [*command, "--", "run", str(config), *more], stdout=file, stderr=file, pass_fds=[progress_fd], cwd=ROOT
            )
        os.close(progress_fd)

    def wait_for(self, letter: str, timeout_s: float = 60.0) -> bool:
        """Wait until it is in recovery (``r``) or in the loop (``l``); False when it ended before."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            if select.select([self._progress], [], [], left)[0]:
                mark = os.read(self._progress, 1)
                if not mark or mark == letter.encode():
                    return bool(mark)
        raise AssertionError(f"the daemon did not come to {letter!r} in {timeout_s} s: {self.output()}")

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> int:
        """SIGKILL it, unless it has ended; return its exit code."""
        self._process.kill()
        return self._process.wait()

    def stop(self, timeout_s: float = 60.0) -> int | None:
        """SIGTERM it; return its exit code, None when it does not end."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def hang_up(self) -> None:
        """Reload its configuration."""
        self._process.send_signal(signal.SIGHUP)

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def output(self) -> str:
        """Its output so far."""
        with self._log.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode(errors="replace")

    def error_lines(self) -> list[str]:
        """Lines that must never be in its output."""
        text = self.output()
        return [f"the log says {word!r}: {text[-2000:]}" for word in _SORROWS if word in text]

    def close(self) -> None:
        """End it if it runs, and close its files."""
        if self._process.poll() is None:
            self.kill()
        os.close(self._progress)
