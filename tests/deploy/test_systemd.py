from __future__ import annotations

import configparser
import gzip
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.support import DEPLOY, run_program
from tests.support.paths import BUNDLE, HELD_OUT
from tests.support.requirements import need

UNIT = DEPLOY / "systemd" / "stream-gru.service"
PROGRAM = "/opt/stream-gru/bin/stream-gru"
# The unit's limit, in tenths: systemd-analyze calls anything below 5 "OK" or better.
EXPOSURE = 25

# Applies the unit's system call filter to itself, as systemd does, and executes the given program.
SANDBOX = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
seccomp = ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p
refuse, allow = 0x00050000 | errno.EPERM, 0x7FFF0000
context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(refuse)))
for name in sys.argv[1].split():
    number = seccomp.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        seccomp.seccomp_rule_add(context, ctypes.c_uint32(allow), number, 0)
if seccomp.seccomp_load(context) != 0:
    sys.exit("seccomp_load failed")
if libc.prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
    sys.exit("no PR_SET_MDWE")
os.execv(sys.argv[2], sys.argv[2:])
"""


def values(key: str) -> list[str]:
    """The values of a key of the unit, line by line."""
    return re.findall(rf"(?m)^{key}=(.*)$", UNIT.read_text())


def system_calls() -> list[str]:
    """The system calls that the unit allows."""
    listed = run_program(need("systemd-analyze"), "syscall-filter", "--no-pager").stdout
    groups: dict[str, list[str]] = {}
    for line in listed.splitlines():
        if line.startswith("@"):
            groups[line.strip()] = members = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            members.append(line.strip())

    def expand(name: str) -> set[str]:
        return {call for member in groups[name] for call in expand(member)} if name.startswith("@") else {name}

    allowed: set[str] = set()
    for line in values("SystemCallFilter"):
        named = {call for name in line.removeprefix("~").split() for call in expand(name)}
        allowed = allowed - named if line.startswith("~") else allowed | named
    return sorted(allowed)


def test_systemd_understands_every_line(tmp_path: Path) -> None:
    """`systemd-analyze verify` reports nothing, except the program that is not installed here."""
    stand_in = tmp_path / "stream-gru"
    shutil.copy("/bin/true", stand_in)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, str(stand_in)))
    verified = run_program(need("systemd-analyze"), "verify", "--man=no", unit)
    assert (verified.returncode, verified.stdout) == (0, "")


def test_verify_would_notice_a_mistake(tmp_path: Path) -> None:
    """The test above can fail: an unknown key is reported."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(PROGRAM, "/bin/true").replace("WatchdogSec=", "WatchdogSeconds="))
    assert "WatchdogSeconds" in run_program(need("systemd-analyze"), "verify", "--man=no", unit).stdout


def test_the_unit_leaves_little_exposed() -> None:
    """`systemd-analyze security` rates the unit better than 2.5 of 10 (a bare one: 9.6)."""
    rated = run_program(
        need("systemd-analyze"), "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", UNIT
    )
    assert rated.returncode == 0, rated.stdout


def test_a_mistake_in_the_configuration_is_final() -> None:
    """Exit code 2 is not retried, and a failed check before the start does not change that."""
    assert values("RestartPreventExitStatus") == ["2"]
    assert values("ExecStartPre") == [f"-{PROGRAM} check /etc/stream-gru/gateway.toml"]


def test_a_start_may_read_many_streams() -> None:
    """The start timeout is longer than the default (90 s): a daemon is not ready before its state is restored."""
    assert values("Type") == ["notify"]
    assert values("TimeoutStartSec") == ["300"]
    assert values("StateDirectory") == ["stream-gru"]


def test_a_reload_is_checked_first() -> None:
    """The running daemon gets the reload signal only when the new configuration is valid."""
    assert values("ExecReload") == [f"{PROGRAM} check /etc/stream-gru/gateway.toml", "/bin/kill -HUP $MAINPID"]


def test_serial_ports_are_the_only_devices() -> None:
    """The device list is closed but for USB, ACM, on-board and classic serial ports."""
    assert values("DevicePolicy") == ["closed"]
    assert values("DeviceAllow") == [f"char-tty{kind} rw" for kind in ("USB", "ACM", "AMA", "S")]


def test_each_directive_stands_once() -> None:
    """No key is set twice by accident; keys that form lists are known."""
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(UNIT.read_text())
    lists = {"after", "execreload", "deviceallow", "systemcallfilter"}
    for section in parser.sections():
        for key in parser[section]:
            found = re.findall(rf"(?mi)^{key}=", UNIT.read_text())
            assert len(found) == 1 or key in lists, key


def in_sandbox(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program under the restrictions of the unit."""
    ended = run_program(sys.executable, "-c", SANDBOX, " ".join(system_calls()), *command)
    if "no PR_SET_MDWE" in ended.stdout:
        pytest.skip("this kernel cannot refuse executable memory (Linux 6.3 can)")
    return ended


@pytest.mark.parametrize("engine", ["litert", "numpy"])
def test_the_engines_work_inside_the_sandbox(engine: str, tmp_path: Path) -> None:
    """With only the unit's system calls and no writable executable memory, outputs are the same bytes as outside."""
    pump, recording = BUNDLE, tmp_path / "pumps.csv"
    with gzip.open(HELD_OUT, "rt") as whole:
        recording.write_text("".join(itertools.islice(whole, 1000)))
    command = (sys.executable, "-m", "stream_gru", "replay", str(pump), str(recording), "--engine", engine, "--out")
    outside, inside = tmp_path / "outside.jsonl", tmp_path / "inside.jsonl"
    free = run_program(*command, outside)
    assert free.returncode == 0, free.stdout
    shut = in_sandbox(*command, inside)
    assert shut.returncode == 0, shut.stdout
    assert inside.read_bytes() == outside.read_bytes()
    assert outside.read_bytes().count(b"\n") > 900


def test_the_sandbox_is_shut() -> None:
    """The test above can fail: forbidden calls are refused, executable memory too."""
    script = (
        "import mmap, os\n"
        "try: os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))\n"
        "except PermissionError: print('refused')\n"
        "try: mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "except PermissionError: print('refused')\n"
    )
    tried = in_sandbox(sys.executable, "-c", script)
    assert tried.stdout.split() == ["refused", "refused"]
