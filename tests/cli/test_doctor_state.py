"""The doctor and the state store: what it reports, and that it changes nothing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stream_gru.cli import doctor_state
from stream_gru.cli.doctor_state import check_state
from stream_gru.core.checks import Check, State
from stream_gru.core.errors import StoreError
from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.store import FILE_NAME
from tests.support.paths import BUNDLE
from tests.support.stores import copy_of_now, opened


def state_checks(folder: Path, commit_interval_s: float = 1.0, now_s: float | None = None) -> list[Check]:
    """All checks of a folder."""
    return list(check_state(folder, commit_interval_s, now_s))


def file_facts(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Bytes, inode and modification time of each file."""
    return {
        one.name: (one.read_bytes(), one.stat().st_ino, one.stat().st_mtime_ns) for one in folder.iterdir()
    }  # fmt: skip


def three_streams(folder: Path) -> Path:
    """Write a store with two commits and a clean shutdown; return its folder."""
    with opened(folder) as store:
        store.write(Commit(schema="{}", streams=[("a", b"1"), ("b", b"2")]))
        store.write(Commit(schema="{}", streams=[("c", b"3")]))
        store.mark_clean_shutdown()
    return folder


def test_an_unlocked_store_is_described(tmp_path: Path) -> None:
    """Streams, commit, pending outputs, size and age; no file is changed."""
    folder = three_streams(tmp_path / "state")
    written_s = (folder / FILE_NAME).stat().st_mtime
    before = file_facts(folder)
    state, sync = state_checks(folder, now_s=written_s + 7200.0)
    assert (state.name, state.state) == (f"state {folder}", State.OK)
    assert state.found == "free; 3 streams, 0 outputs pending, 0.0 MiB, last written 2 hours ago"
    assert sync.name == f"sync {folder}"
    assert file_facts(folder) == before
    with opened(folder) as store:
        assert (store.count(), store.clean_shutdown) == (3, True)


def test_a_missing_folder_is_not_created(tmp_path: Path) -> None:
    """The first start creates it; the disk is measured at its future place and nothing is left there."""
    state, sync = state_checks(tmp_path / "a" / "b")
    assert (state.state, state.found) == (State.OK, "no store yet; the daemon creates it at its first start")
    assert sync.found.startswith("p50 ")
    assert list(tmp_path.iterdir()) == []


_HOLD = """
import sys
from pathlib import Path
from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.store import Store
store = Store(Path(sys.argv[1]))
store.open()
print("open", flush=True)
for line in sys.stdin:
    store.write(Commit(schema="{}", streams=[(line.strip(), b"1")]))
    print("written", flush=True)
store.close()
"""


def test_a_running_daemon_is_named_and_not_disturbed(tmp_path: Path) -> None:
    """The process is named, its files are unchanged, and it continues to commit."""
    line = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        before = file_facts(tmp_path)
        state = state_checks(tmp_path)[0]
        assert state.state is State.OK
        assert state.found.startswith(f"held by process {holder.pid}; ")
        assert file_facts(tmp_path) == before
        holder.stdin.write("pump-1\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "written\n"
        holder.stdin.close()
    assert "free; 1 streams, " in state_checks(tmp_path)[0].found


def test_the_wear_of_a_card_is_extrapolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """From what a process has written since it started, once that is a minute ago."""
    own = str(os.getpid())
    assert 0 < doctor_state._age_s(own) < 86_400
    monkeypatch.setattr(doctor_state, "disk_bytes", lambda process: 10**9)
    monkeypatch.setattr(doctor_state, "_age_s", lambda process: 8640.0)
    assert "writes 10 GB a day to disks" in doctor_state._wear(own)
    assert "rated for 10 TBW lasts 2.7 years" in doctor_state._wear(own)
    monkeypatch.setattr(doctor_state, "_age_s", lambda process: 59.0)
    assert doctor_state._wear(own) == ""
    assert doctor_state._wear("") == ""


def test_an_unclean_shutdown_is_left_to_the_daemon(tmp_path: Path) -> None:
    """A write-ahead log without a process is neither ignored nor checkpointed."""
    with opened(tmp_path / "live") as store:
        store.write(Commit(schema="{}", streams=[("a", b"1")]))
        killed = copy_of_now(tmp_path / "live", tmp_path / "killed")
    before = file_facts(killed)
    state = state_checks(killed)[0]
    assert state.state is State.OK
    assert "unclean shutdown" in state.found
    assert file_facts(killed) == before


def test_a_damaged_file_is_reported_and_not_moved(tmp_path: Path) -> None:
    """The advice says what the next start does with it."""
    three_streams(tmp_path)
    (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    before = file_facts(tmp_path)
    state = state_checks(tmp_path)[0]
    assert state.state is State.WARN
    assert "not readable: file is not a database" in state.found
    assert "moves this file aside" in state.advice
    assert file_facts(tmp_path) == before


def test_a_file_moved_aside_is_reported(tmp_path: Path) -> None:
    """Its write-ahead log is not named separately."""
    three_streams(tmp_path)
    for end in ("", "-wal"):
        (tmp_path / f"{FILE_NAME}.damaged-20260101T000000Z{end}").touch()
    state = state_checks(tmp_path)[0]
    assert state.state is State.WARN
    assert state.found.endswith(f"\ndamaged files, moved aside: {FILE_NAME}.damaged-20260101T000000Z")


def test_a_network_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the daemon; no other check follows."""

    def refuse(folder: Path) -> None:
        raise StoreError(f"{folder}: is on nfs4")

    monkeypatch.setattr(doctor_state, "require_local", refuse)
    (state,) = state_checks(tmp_path)
    assert (state.state, state.found) == (State.FAIL, f"{tmp_path}: is on nfs4")


def test_an_unset_variable_is_reported(tmp_path: Path) -> None:
    """A variable that only systemd sets is not taken for the name of a folder."""
    (state,) = state_checks(tmp_path / "$STATE_DIRECTORY")
    assert state.state is State.WARN
    assert "expected set environment variables" in state.found


def test_unreadable_files_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of another user are a failure with advice."""

    def refuse(path: Path) -> str | None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    three_streams(tmp_path)
    monkeypatch.setattr(doctor_state, "_holder", refuse)
    state = state_checks(tmp_path)[0]
    assert (state.state, state.found) == (State.FAIL, f"{tmp_path}/lock: Permission denied")
    assert "as the user of the daemon" in state.advice


def test_a_slow_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sync may take at most a quarter of the time between two commits."""
    monkeypatch.setattr(doctor_state, "_sync_s", lambda _: 0.2)
    sync = state_checks(tmp_path)[1]
    assert (sync.state, sync.found) == (State.OK, "p50 200.0 ms, a commit every 1 s")
    sync = state_checks(tmp_path, commit_interval_s=0.1)[1]
    assert sync.state is State.WARN
    assert "raise commit_interval_s" in sync.advice


def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon would end with its first commit."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    sync = state_checks(tmp_path)[1]
    assert (sync.state, sync.found) == (State.FAIL, f"{tmp_path}: No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of the folder reports it already."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert [check.name for check in state_checks(tmp_path)] == [f"state {tmp_path}"]


@pytest.mark.parametrize(
    ("age_s", "text"),
    [(3, "3 s ago"), (119, "119 s ago"), (120, "2 minutes ago"), (7200, "2 hours ago"), (2e6, "23 days ago"),
     (-5, "in the future; check the clock")],
)  # fmt: skip
def test_ages_have_a_suitable_unit(tmp_path: Path, age_s: float, text: str) -> None:
    """At least two of a unit; an age in the future points at the clock."""
    (tmp_path / FILE_NAME).touch()
    os.utime(tmp_path / FILE_NAME, (1e9, 1e9))
    assert f"last written {text}" in state_checks(tmp_path, now_s=1e9 + age_s)[0].found


@pytest.mark.parametrize(("source", "every"), [("stdin", "1 s"), ("serial", "0.1 s")])
def test_the_doctor_includes_the_state(tmp_path: Path, source: str, every: str) -> None:
    """It checks folder, store and disk, with the commit interval of the daemon."""
    config = tmp_path / "run.toml"
    port = 'port = "loop://"\n' if source == "serial" else ""
    config.write_text(
        f'[run]\nbundle = "{BUNDLE}"\nstate_dir = "state"\n[metrics]\nenabled = false\n'
        f'[[source]]\ntype = "{source}"\nformat = "csv"\n{port}[[sink]]\ntype = "file"\npath = "out.jsonl"\n'
    )
    line = [sys.executable, "-m", "stream_gru", "doctor", str(config), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    found = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    folder = tmp_path / "state"
    assert f"disk {folder}" in found
    assert found[f"state {folder}"]["state"] == "ok"
    assert found[f"sync {folder}"]["found"].endswith(f"a commit every {every}")
    assert not folder.exists()
