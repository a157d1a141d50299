"""Failing disks: any system call on states and outputs, and a full disk."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kill.io import case_of
from tests.kill.life import Life
from tests.kill.messages import field_messages
from tests.kill.replay import undisturbed_replay
from tests.kill.results import differences, read_results
from tests.kill.runs import LOG, Settings, write_config, write_recording
from tests.support.requirements import needs_gcc, needs_mosquitto

SEED = 7
FAULTS = 21


@needs_gcc
@pytest.mark.parametrize(
    "kind",
    [
        "replay",
        "recovery",
        pytest.param("mqtt", marks=[pytest.mark.servers, needs_mosquitto]),
    ],
)
def test_any_system_call_may_fail(kind: str, tmp_path: Path) -> None:
    """After a failed write, sync, open or rename the daemon ends, and the next start recovers everything."""
    with case_of(kind, tmp_path / kind, SEED) as case:
        found = case.verdict(random.Random(SEED), FAULTS)
    assert not found.problems, "\n".join(found.problems)
    assert found.failed.total() > FAULTS / 2
    assert found.ended["with 1"] > 0


@needs_gcc
@pytest.mark.servers
@needs_mosquitto
def test_acknowledging_on_arrival_is_detected(tmp_path: Path) -> None:
    """The same comparison finds losses if messages are acknowledged before they are stored."""
    with case_of("mqtt", tmp_path / "mqtt", SEED, without="ack") as case:
        assert case.verdict(random.Random(SEED), FAULTS, first=True).problems


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a disk that is too small for what a daemon writes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=384k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_daemon_and_a_larger_one_lets_it_continue(small_disk: Path, tmp_path: Path) -> None:
    """A full disk loses and duplicates nothing, at any number of starts on it."""
    sent = list(field_messages(600, 12, SEED))
    reference = undisturbed_replay(tmp_path / "reference", sent)
    write_recording(tmp_path / "messages.jsonl", sent)
    config = write_config(tmp_path, Settings(batch_rows=100, commit_every=60, into="disk/"))
    for _ in range(3):
        life = Life(config, tmp_path / LOG)
        assert life.wait(60) == 1
        assert "No space left on device" in life.output() or "disk is full" in life.output()
        assert not life.error_lines()
        life.close()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    life = Life(config, tmp_path / LOG)
    assert life.wait(60) == 0
    life.close()
    assert not differences(reference, read_results(small_disk))
