"""A damaged log is found out, and one that a kill has left is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stream_gru.runtime.checkpoint.store import Commit, Store

COMMITS = 12
FRAME = 24 + 4096


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder as a kill has left it: commits that stand in the log alone."""
    store = Store(tmp_path / "running")
    store.open()
    for number in range(COMMITS):
        store.write(Commit(schema="f", streams=[(f"s-{number}", bytes([number]) * 3000)]))
    shutil.copytree(tmp_path / "running", tmp_path / "killed")
    store.close()
    return tmp_path / "killed"


def names(folder: Path) -> tuple[list[str], bool]:
    """The streams of a store that is opened again, and whether the file was moved aside."""
    store = Store(folder)
    store.open()
    try:
        return store.names(), store.moved_aside is not None
    finally:
        store.close()


def test_a_log_that_a_kill_has_left_is_read_to_its_end(killed: Path) -> None:
    """Every commit is there, and nothing is moved aside."""
    assert (killed / "state.db-wal").stat().st_size > COMMITS * FRAME
    assert names(killed) == (sorted(f"s-{number}" for number in range(COMMITS)), False)


def test_a_torn_last_commit_is_no_damage(killed: Path) -> None:
    """What was under way when the power went is left out; it was acknowledged to nobody."""
    log = killed / "state.db-wal"
    log.write_bytes(log.read_bytes()[:-100])
    found, moved = names(killed)
    assert not moved
    assert found == sorted(f"s-{number}" for number in range(COMMITS - 1))


@pytest.mark.parametrize("place", [32 + 5, 32 + 2 * FRAME + 100, 32 + 5 * FRAME + 2000])
def test_a_log_that_is_damaged_before_commits_is_told(killed: Path, place: int) -> None:
    """Going on in silence would take back what was acknowledged."""
    log = killed / "state.db-wal"
    data = bytearray(log.read_bytes())
    data[place] ^= 0x10
    log.write_bytes(data)
    assert names(killed) == ([], True)
    assert list(killed.glob("state.db.damaged-*"))


def test_a_log_without_a_whole_header_says_nothing(killed: Path) -> None:
    """As a kill leaves it that comes between the making of the file and its first commit."""
    (killed / "state.db-wal").write_bytes(b"\x37\x7f")
    assert names(killed)[1] is False
