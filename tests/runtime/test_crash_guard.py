"""A message that ends the process again and again is set aside; one that was merely in progress is not."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stream_gru.core.errors import SinkUnavailable
from stream_gru.core.types import DropReason, RawMessage
from stream_gru.runtime.crash_guard import FILE_NAME, CrashGuard
from tests.support.paths import ROOT

GOOD, BAD, OTHER = (RawMessage(name.encode(), "pump-1", source="plant") for name in ("good", "bad", "other"))

PROCESS = """
import os, sys
from pathlib import Path
from stream_gru.core.types import RawMessage
from stream_gru.runtime.crash_guard import CrashGuard

guard = CrashGuard(Path(sys.argv[1]))
guard.open(clean=False)
message = [RawMessage(b"bad", "pump-1", source="plant")]
if guard.screened(message)[0].fault is not None:
    sys.exit(0)
with guard.processing(message):
    {death}
"""


def died(folder: Path, *messages: RawMessage, evidence: bool = False) -> None:
    """Another process dies while it processes these messages."""
    guard = CrashGuard(folder)
    guard.open(clean=False)
    piece = guard.processing(messages)
    piece.__enter__()
    if evidence:
        piece.__exit__(RuntimeError, RuntimeError(), None)
    guard.close()


def started(folder: Path, *, clean: bool = False) -> CrashGuard:
    """The next process."""
    guard = CrashGuard(folder)
    guard.open(clean=clean)
    guard.close()
    return guard


def fault(guard: CrashGuard, message: RawMessage) -> DropReason | None:
    """The fault with which a message is processed."""
    (screened,) = guard.screened([message])
    return screened.fault


@pytest.mark.parametrize("death", ["os.abort()", "raise MemoryError"])
def test_a_message_that_crashes_the_process_is_processed_twice_at_most(tmp_path: Path, death: str) -> None:
    """With evidence, a fatal signal or an unexpected exception, the third start rejects it without decoding it."""
    script = textwrap.dedent(PROCESS).format(death=death)
    command = [sys.executable, "-c", script, str(tmp_path)]
    codes = [subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode for _ in range(3)]
    assert codes[0] != 0
    assert codes[1] != 0
    assert codes[2] == 0


def test_deaths_without_evidence_count_less(tmp_path: Path) -> None:
    """An operator kills processes too: a message is set aside only after six deaths in a row."""
    for _ in range(5):
        died(tmp_path, BAD)
        assert fault(started(tmp_path), BAD) is None
    died(tmp_path, BAD)
    guard = started(tmp_path)
    assert fault(guard, BAD) is DropReason.POISON
    assert fault(guard, GOOD) is None


def test_messages_of_a_group_become_suspects_that_are_processed_alone(tmp_path: Path) -> None:
    """Evidence against a group is no evidence against one message; a suspect that passes is none any more."""
    died(tmp_path, GOOD, BAD, evidence=True)
    guard = CrashGuard(tmp_path)
    guard.open(clean=False)
    assert guard.is_suspect(GOOD)
    assert guard.is_suspect(BAD)
    assert not guard.is_suspect(OTHER)
    assert [fault(guard, message) for message in (GOOD, BAD)] == [None, None]
    with guard.processing([GOOD]):
        pass
    assert not guard.is_suspect(GOOD)
    guard.close()
    assert started(tmp_path).is_suspect(BAD)


def test_nothing_is_held_against_a_message_after_a_clean_shutdown(tmp_path: Path) -> None:
    """Nor after an error that the daemon expects, such as a full disk."""
    died(tmp_path, BAD)
    assert not started(tmp_path, clean=True).is_suspect(BAD)
    guard = CrashGuard(tmp_path / "other")
    (tmp_path / "other").mkdir()
    guard.open(clean=False)
    with pytest.raises(SinkUnavailable), guard.processing([BAD]):
        raise SinkUnavailable("disk full")
    guard.close()
    for _ in range(3):
        assert fault(started(tmp_path / "other"), BAD) is None


@pytest.mark.parametrize("content", [b"", b"\xff", b"\xff\xff\xff\xff", bytes(range(64)), b"\x02\0\0\0\x91\xc0"])
def test_a_damaged_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    """The guard then knows no suspects, and works."""
    (tmp_path / FILE_NAME).write_bytes(content)
    guard = started(tmp_path)
    assert not guard.is_suspect(BAD)


def test_without_a_folder_nothing_is_kept() -> None:
    """A daemon without a store processes every message."""
    guard = CrashGuard()
    guard.open(clean=False)
    with guard.processing([BAD]):
        pass
    assert fault(guard, BAD) is None
