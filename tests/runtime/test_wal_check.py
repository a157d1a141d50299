"""A damaged log is detected, and one left by a kill is not taken for damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.store import Store

COMMITS = 12
FRAME = 24 + 4096


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Return a directory as a kill leaves it, with commits only in the log."""
    store = Store(tmp_path / "running")
    store.open()
    for number in range(COMMITS):
        store.write(Commit(schema="f", streams=[(f"s-{number}", bytes([number]) * 3000)]))
    shutil.copytree(tmp_path / "running", tmp_path / "killed")
    store.close()
    return tmp_path / "killed"


def stored_names(folder: Path) -> tuple[list[str], bool]:
    """Return the streams of a reopened store, and whether the file was moved aside."""
    store = Store(folder)
    store.open()
    try:
        return store.names(), store.moved_aside is not None
    finally:
        store.close()


def test_a_log_left_by_a_kill_is_read_to_its_end(killed: Path) -> None:
    """Every commit is there, and nothing is moved aside."""
    assert (killed / "state.db-wal").stat().st_size > COMMITS * FRAME
    assert stored_names(killed) == (sorted(f"s-{number}" for number in range(COMMITS)), False)


def test_a_torn_last_commit_is_not_damage(killed: Path) -> None:
    """An unfinished commit is ignored; it was never acknowledged."""
    log = killed / "state.db-wal"
    log.write_bytes(log.read_bytes()[:-100])
    found, moved = stored_names(killed)
    assert not moved
    assert found == sorted(f"s-{number}" for number in range(COMMITS - 1))


@pytest.mark.parametrize("place", [32 + 5, 32 + 2 * FRAME + 100, 32 + 5 * FRAME + 2000])
def test_damage_before_later_commits_is_detected(killed: Path, place: int) -> None:
    """Continuing silently would roll back what was acknowledged."""
    log = killed / "state.db-wal"
    data = bytearray(log.read_bytes())
    data[place] ^= 0x10
    log.write_bytes(data)
    assert stored_names(killed) == ([], True)
    assert list(killed.glob("state.db.damaged-*"))


def test_a_log_without_a_whole_header_is_empty(killed: Path) -> None:
    """As a kill leaves it between the creation of the file and its first commit."""
    (killed / "state.db-wal").write_bytes(b"\x37\x7f")
    assert stored_names(killed)[1] is False
