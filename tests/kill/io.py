"""Fail each system call on states and outputs in turn, once or permanently, and check the outcome.

replay    from nothing; some commits, a rotation
recovery  after a kill, so that files are truncated and states restored
mqtt      acknowledgements after commits

After a failure the daemon must have ended with an error, or no data was missing; and a start without faults must end
with the states and outputs of a run without faults.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kill.life import Life
from tests.kill.messages import field_messages
from tests.kill.mqtt import KillDevice
from tests.kill.results import Results, differences, read_results
from tests.kill.runs import LOG, Settings, processed_all, write_config, write_recording
from tests.support.brokers import Broker
from tests.support.paths import ROOT
from tests.support.waiting import wait_for

KINDS = ("replay", "recovery", "mqtt")
_WRITTEN = "left"
_SOURCE = Path(__file__).with_name("failing_io.c")
_COUNTER = "ll496s65536s"  # struct counter in failing_io.c
_OUTPUTS = (".jsonl", ".gz")
_STREAMS = 12
_TIMEOUT_S = 60.0
_PATIENCE_S = 15.0


@dataclass(frozen=True)
class Fault:
    """The ``nth`` call fails with ``error``; ``sticky``: all later ones too.  ``nth`` 0: calls are only counted."""

    nth: int
    error: int = errno.EIO
    sticky: bool = False

    def __str__(self) -> str:
        return f"call {self.nth}, {errno.errorcode[self.error]}{', and all later ones' if self.sticky else ''}"


@dataclass
class Match:
    """The results of all faults of one kind: how often which call failed, and what went wrong."""

    calls: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {name}" for name, n in sorted(self.failed.items()))
        ends = ", ".join(f"{n} {name}" for name, n in sorted(self.ended.items()))
        counts = f"{self.calls} calls; {self.failed.total()} faults: {kinds}"
        return f"{counts}; ended: {ends}; {len(self.problems)} differences"


class CountingServer:
    """The process that starts daemons with faults in the files below ``folder``/left.

    ``without``: a part of the guarantee that all of them lack, of `tests.kill.child`.
    """

    def __init__(self, folder: Path, without: str = "") -> None:
        self.folder, self.written, self._without = folder, folder / _WRITTEN, without
        self._counter = folder / "counter"
        library = folder / "failing_io.so"
        subprocess.run(
            ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, _SOURCE, "-ldl"],
            check=True,
        )
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill.io_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "LD_PRELOAD": str(library)},
        )

    def start(self, config: Path, log: Path, fault: Fault | None) -> int:
        """Start a daemon; return its number."""
        case: dict[str, Any] = {"config": str(config), "log": str(log), "without": self._without}
        if fault is not None:
            self._counter.unlink(missing_ok=True)
            case |= {"folder": str(self.written), "counter": str(self._counter)}
            case |= {"nth": fault.nth, "error": fault.error, "sticky": int(fault.sticky)}
        return int(self._ask({"start": case})["pid"])

    def wait(self, pid: int, timeout_s: float = _TIMEOUT_S) -> int | None:
        """Its exit code; None while it runs."""
        code = self._ask({"wait": pid, "timeout_s": timeout_s})["code"]
        return None if code is None else int(code)

    def counted(self) -> tuple[str, str]:
        """The calls of the last run with a fault, a letter each, and which one was the first to fail."""
        calls, _, what, kinds = struct.unpack(_COUNTER, self._counter.read_bytes())
        return kinds[1 : calls + 1].decode(), what.split(b"\0")[0].decode()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=20)


# One run: with a fault or without; returns the exit code.
RunOnce = Callable[[Fault | None], int | None]


@dataclass
class KindOfRun:
    """A kind of run, and its results without faults.  ``prepare`` restores everything as before the first run."""

    server: CountingServer
    prepare: Callable[[], None]
    run: RunOnce
    reference: Results

    def verdict(self, rng: random.Random, cases: int | None, *, first: bool = False) -> Match:
        """Try faults: all of them, or ``cases``, of which each kind of call has its share.

        ``first``: up to the first difference.
        """
        kinds = self._count()
        found = Match(calls=len(kinds))
        ways = list(itertools.product((errno.EIO, errno.ENOSPC), (False, True)))
        if cases is None:
            faults = [Fault(nth, *way) for nth in range(1, len(kinds) + 1) for way in ways]
        else:
            faults = [Fault(nth, *rng.choice(ways)) for nth in _sample(rng, kinds, cases)]
        for fault in faults:
            self._try(fault, found)
            if first and found.problems:
                break
        return found

    def _count(self) -> str:
        self.prepare()
        code = self.run(Fault(0))
        wrong = differences(self.reference, read_results(self.server.written))
        assert code == 0 and not wrong, (code, wrong)  # noqa: PT018
        return self.server.counted()[0]

    def _try(self, fault: Fault, found: Match) -> None:
        self.prepare()
        log = self.server.folder / LOG
        log.unlink(missing_ok=True)
        code = self.run(fault)
        _, what = self.server.counted()
        if not what:
            return  # it ended with fewer calls than the run that was counted
        found.failed[what.split()[0]] += 1
        found.ended["well" if code == 0 else f"with {code}"] += 1
        problems = [] if code in (0, 1) else [f"expected exit code 0 or 1, got {code}"]
        if code == 0 and "sync" in what and what.endswith(_OUTPUTS):
            problems.append("exit code 0, though the durable part of this file is unknown")
        if code == 0:
            problems += [
                f"ended well, but {text}" for text in differences(self.reference, read_results(self.server.written))
            ]
        problems += [f"the log says {word}" for word in ("Traceback", "unaccounted") if word in log.read_text()]
        again = self.run(None)
        problems += [] if again == 0 else [f"the next start: expected exit code 0, got {again}"]
        problems += differences(self.reference, read_results(self.server.written))
        if problems:
            found.problems.append(f"{fault}, {what}: {problems}: {log.read_text()[-1500:]}")


def _sample(rng: random.Random, kinds: str, count: int) -> list[int]:
    """Return the numbers of ``count`` calls, the kinds of calls in turn."""
    numbers = {kind: [nth for nth, one in enumerate(kinds, 1) if one == kind] for kind in sorted(set(kinds))}
    for calls in numbers.values():
        rng.shuffle(calls)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*numbers.values()))
    return list(itertools.islice((nth for nth in turns if nth is not None), count))


@contextmanager
def case_of(kind: str, folder: Path, seed: int, messages: int = 300, without: str = "") -> Iterator[KindOfRun]:
    """Return a case of one of `KINDS`."""
    folder.mkdir(parents=True)
    server = CountingServer(folder, without)
    try:
        if kind == "mqtt":
            with Broker(folder, lines=["max_inflight_messages 1000", "set_tcp_nodelay true"]) as broker:
                yield _mqtt(server, broker, seed, messages // 3)
        else:
            yield _replay(server, seed, messages, killed=kind == "recovery")
    finally:
        server.close()


def _replay(server: CountingServer, seed: int, messages: int, *, killed: bool) -> KindOfRun:
    folder, template = server.folder, server.folder / "template"
    write_recording(folder / "messages.jsonl", list(field_messages(messages, _STREAMS, seed)))
    config = write_config(folder, Settings(batch_rows=100, commit_every=60, into=f"{_WRITTEN}/"))

    def run(fault: Fault | None) -> int | None:
        return server.wait(server.start(config, folder / LOG, fault))

    server.written.mkdir()
    assert run(None) == 0, (folder / LOG).read_text()
    reference = read_results(server.written)
    _empty(server.written)
    if killed:
        life = Life(config, folder / LOG, "--point", "log", "--side", "after", "--nth", "4")
        assert life.wait(_TIMEOUT_S) == -signal.SIGKILL
        life.close()
    shutil.copytree(server.written, template)

    def prepare() -> None:
        _empty(server.written)
        shutil.copytree(template, server.written, dirs_exist_ok=True)

    return KindOfRun(server, prepare, run, reference)


def _mqtt(server: CountingServer, broker: Broker, seed: int, messages: int) -> KindOfRun:
    """Each attempt has its own session and topics; the device sends while the daemon runs."""
    folder, sent = server.folder, list(field_messages(messages, _STREAMS, seed))
    numbers = itertools.count(1)
    state: dict[str, Path | str] = {"config": folder, "client_id": "", "sent": ""}

    def prepare() -> None:
        _empty(server.written)
        client_id = f"gateway-{next(numbers)}"
        settings = Settings(commit_every=25, commit_interval_s=0.05, into=f"{_WRITTEN}/", client_id=client_id)
        state.update(config=write_config(folder, settings, url=broker.url), client_id=client_id, sent="")
        (folder / LOG).unlink(missing_ok=True)
        pid = server.start(Path(state["config"]), folder / LOG, None)
        wait_for(lambda: "subscribed to" in _text(folder / LOG), what="a subscription")
        os.kill(pid, signal.SIGTERM)
        assert server.wait(pid) == 0

    def run(fault: Fault | None) -> int | None:
        log_length = len(_text(folder / LOG))
        pid = server.start(Path(state["config"]), folder / LOG, fault)
        # Files are truncated to the durable part only then: before, the last row may be one that is written again.
        code = _until(server, pid, lambda: "subscribed to" in _text(folder / LOG)[log_length:])
        if not state["sent"]:
            state["sent"] = "yes"
            device = KillDevice(broker.port, sent, str(state["client_id"]))
            device.begin(lambda: 1.0)
            device.hurry()
            device.close()
        if code is None:
            code = _until(server, pid, lambda: processed_all(server.written))
        if code is None:
            os.kill(pid, signal.SIGTERM)
            code = server.wait(pid)
        return code

    server.written.mkdir()
    prepare()
    assert run(None) == 0, _text(folder / LOG)
    return KindOfRun(server, prepare, run, read_results(server.written))


def _until(server: CountingServer, pid: int, true: Callable[[], bool]) -> int | None:
    """Wait until a condition holds and return None, or until the daemon ends and return its exit code."""
    end = time.monotonic() + _PATIENCE_S
    code = None
    while code is None and not true() and time.monotonic() < end:
        code = server.wait(pid, 0.01)
    return code


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def run_all(folder: Path, seed: int, cases: int | None, kinds: Sequence[str] = KINDS) -> bool:
    """Try all kinds, print the verdicts, and return whether nothing was lost."""
    well = True
    for kind in kinds:
        begin = time.monotonic()
        with case_of(kind, folder / kind, seed) as case:
            found = case.verdict(random.Random(seed), cases)
        print(f"{kind}: {found}; {time.monotonic() - begin:.0f} s", flush=True)  # noqa: T201 - a command of its own
        print(*(f"DIFFERENCE: {text}" for text in found.problems), sep="\n", end="\n" if found.problems else "")  # noqa: T201
        well = well and not found.problems
    return well
