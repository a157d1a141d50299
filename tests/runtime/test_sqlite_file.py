"""The database file: who can use it, where it can be, and what happens to a damaged one."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_gru.core.errors import StoreError, StoreLocked
from stream_gru.core.types import Position
from stream_gru.runtime.checkpoint import sqlite_file as database
from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.sqlite_file import StoreLock, checksum, require_local
from stream_gru.runtime.checkpoint.store import FILE_NAME, Store
from tests.runtime.test_store import FULL, assert_full
from tests.support.stores import change_store, checkpoint, copy_of_now, opened, store_content

_HOLD = """
import sys
from pathlib import Path
from stream_gru.runtime.checkpoint.store import Store
Store(Path(sys.argv[1])).open()
print("open", flush=True)
sys.stdin.read()
"""

# ---- the lock


def test_a_second_process_learns_which_process_uses_the_store(tmp_path: Path) -> None:
    """The message has its process id; after a kill of that process the store is free and whole."""
    with opened(tmp_path) as store:
        store.write(FULL)
    line = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(StoreLocked, match=f"process {holder.pid} uses this state; stop it, or give each daemon"):
            Store(tmp_path).open()
        holder.kill()
    with opened(tmp_path) as store:
        assert_full(store)


def test_a_rejected_store_does_not_release_the_lock_of_the_holder(tmp_path: Path) -> None:
    """Nor does it change the file."""
    with opened(tmp_path) as store:
        other = Store(tmp_path)
        for _ in range(2):
            with pytest.raises(StoreLocked):
                other.open()
            other.close()
        store.write(FULL)
        assert_full(store)


def test_a_lock_without_a_process_id_is_held_by_another_process(tmp_path: Path) -> None:
    """It may be about to write it."""
    lock = StoreLock(tmp_path / "lock")
    lock.acquire()
    lock.acquire()
    (tmp_path / "lock").write_text("")
    with pytest.raises(StoreLocked, match="another process uses this state"):
        StoreLock(tmp_path / "lock").acquire()
    lock.release()
    lock.release()
    StoreLock(tmp_path / "lock").acquire()


def test_a_full_disk_is_an_error_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is free again."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StoreError, match="lock: cannot be written: No space left on device"):
            StoreLock(tmp_path / "lock").acquire()
    StoreLock(tmp_path / "lock").acquire()


def test_a_directory_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    """So is a lock file whose name is taken by a directory."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/state: cannot be created: Not a directory"):
        Store(tmp_path / "file" / "state").open()
    (tmp_path / "lock").mkdir()
    with pytest.raises(StoreError, match="lock: cannot be created: Is a directory"):
        Store(tmp_path).open()


def test_a_failed_start_releases_the_lock(tmp_path: Path) -> None:
    """The next attempt reports the same error, not a lock."""
    (tmp_path / FILE_NAME).mkdir()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"state\.db: cannot be opened: .*Is a directory"):
            Store(tmp_path).open()


# ---- the disk

_LINE = "36 25 0:32 / {place} rw,relatime shared:1 - {kind} /dev/sda1 rw\n"


@pytest.mark.parametrize(
    ("mounts", "refused"),
    [
        ([("/", "ext4")], ""),
        ([("/", "ext4"), ("/srv", "nfs4")], "nfs4"),
        ([("/", "nfs"), ("/srv/state", "xfs")], ""),
        ([("/", "ext4"), ("/srv", "cifs")], "cifs"),
        ([("/", "ext4"), ("/srv", "fuse.sshfs")], "fuse.sshfs"),
        ([("/", "9p")], "9p"),
        ([("/", "ext4"), ("/sr", "nfs"), ("/srv/state/deeper", "nfs")], ""),
        ([("/srv", "nfs"), ("/srv", "ext4")], ""),
        ([("/srv", "ext4"), ("/srv", "nfs")], "nfs"),
    ],
)
def test_network_file_systems_are_rejected(tmp_path: Path, mounts: list[tuple[str, str]], refused: str) -> None:
    """The nearest and newest mount decides; the message names its type."""
    table = tmp_path / "mountinfo"
    table.write_text("".join(_LINE.format(place=place, kind=kind) for place, kind in mounts))
    folder = Path("/srv/state")
    if refused:
        with pytest.raises(
            StoreError, match=f"/srv/state: expected a local disk, got {refused}: choose another run.state_dir"
        ):
            require_local(folder, table)
    else:
        require_local(folder, table)


def test_a_mount_may_have_any_name(tmp_path: Path) -> None:
    """Spaces are octal escapes in the table, other characters are plain."""
    table = tmp_path / "mountinfo"
    table.write_text(_LINE.format(place="/mnt/my\\040disk\u00a0für", kind="nfs"))
    with pytest.raises(StoreError, match="expected a local disk, got nfs"):
        require_local(Path("/mnt/my disk\u00a0für/state"), table)


def test_an_unknown_file_system_is_accepted(tmp_path: Path) -> None:
    """No mount table, or one in another format."""
    require_local(tmp_path, tmp_path / "absent")
    (tmp_path / "strange").write_text("a b c\n\n36 25 0:32 / / rw shared:1 nfs more\n")
    require_local(tmp_path, tmp_path / "strange")


# ---- an unexpected file


@pytest.mark.parametrize("number", [1, 2, 4])
def test_a_file_of_another_format_is_rejected_and_left_alone(tmp_path: Path, number: int) -> None:
    """Older or newer: the error says which, and what to do; the file is neither moved nor changed."""
    with opened(tmp_path) as store:
        store.write(FULL)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute(f"PRAGMA user_version={number}")
    before = store_content(tmp_path)
    with pytest.raises(StoreError, match=f"expected format 3, got {number}: another version .*; run that version, or"):
        Store(tmp_path).open()
    assert store_content(tmp_path) == before


@pytest.mark.parametrize("version", [0, 1, 7])
def test_tables_of_another_program_are_moved_aside(tmp_path: Path, version: int) -> None:
    """Unchanged, at any version number of that program."""
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.executescript(f"CREATE TABLE mine(x); INSERT INTO mine VALUES(1); PRAGMA user_version={version}")
    before = (tmp_path / FILE_NAME).read_bytes()
    with opened(tmp_path) as store:
        assert store.moved_aside is not None
        assert store.moved_aside.read_bytes() == before
        store.write(FULL)
        assert_full(store)


def test_a_damaged_file_is_moved_aside_with_its_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both keep their bytes under a name with the time, and an empty store replaces them."""
    with opened(tmp_path / "a") as store:
        store.write(FULL)
        checkpoint(store)
        store.write(Commit(positions={"s": Position("s", 2)}))
        folder = copy_of_now(tmp_path / "a", tmp_path / "b")
    (folder / FILE_NAME).write_bytes(b"no database" * 1000)
    log = (folder / "state.db-wal").read_bytes()
    store = Store(folder, wall_s=lambda: 1_772_323_200.0)
    store.open()
    assert store.moved_aside == folder / "state.db.damaged-20260301T000000Z"
    assert store.moved_aside.read_bytes() == b"no database" * 1000
    assert (folder / "state.db.damaged-20260301T000000Z-wal").read_bytes() == log
    assert "state.db: damaged" in caplog.text
    assert (store.names(), store.commit_no, store.clean_shutdown) == ([], 0, True)
    store.write(FULL)
    assert_full(store)
    store.close()


def test_without_repair_a_damaged_file_and_its_log_are_unchanged(tmp_path: Path) -> None:
    """The error says what to do; file and log keep names and bytes, and the lock is free."""
    with opened(tmp_path / "a") as store:
        store.write(Commit(schema="f", streams=[(f"s{number}", bytes(1000)) for number in range(100)]))
        assert store.count() == 100
        checkpoint(store)
        store.write(FULL)
        folder = copy_of_now(tmp_path / "a", tmp_path / "b")
    with (folder / FILE_NAME).open("r+b") as file:
        file.seek(4096 * 20)
        file.write(bytes(4096 * 2))

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("state.db*")}

    before = files()
    assert len(before["state.db-wal"]) > 4096
    for _ in range(2):
        with pytest.raises(StoreError, match=r"state\.db: damaged .*: keep a copy .* moves this file aside"):
            Store(folder).open(repair=False)
        assert files() == before
    with opened(folder) as store:
        assert store.moved_aside is not None


def test_without_repair_a_whole_file_opens(tmp_path: Path) -> None:
    """As with repair."""
    with opened(tmp_path) as store:
        store.write(FULL)
    store = Store(tmp_path)
    store.open(repair=False)
    assert_full(store)
    store.close()


def test_damaged_files_of_the_same_second_do_not_replace_each_other(tmp_path: Path) -> None:
    """Each gets a number."""
    for number in range(3):
        (tmp_path / FILE_NAME).write_bytes(b"%d" % number * 5000)
        store = Store(tmp_path, wall_s=lambda: 0.0)
        store.open()
        store.close()
    found = {path.name: path.read_bytes()[:1] for path in tmp_path.glob("*.damaged-*")}
    name = "state.db.damaged-19700101T000000Z"
    assert found == {name: b"0", f"{name}.1": b"1", f"{name}.2": b"2"}


def test_an_inconsistent_file_is_damaged(tmp_path: Path) -> None:
    """The check at the start finds a page of zeros in the middle."""
    with opened(tmp_path) as store:
        store.write(Commit(schema="f", streams=[(f"s{number}", bytes(1000)) for number in range(100)]))
    with (tmp_path / FILE_NAME).open("r+b") as file:
        file.seek(4096 * 20)
        file.write(bytes(4096 * 5))
    with opened(tmp_path) as store:
        assert store.moved_aside is not None
        assert store.names() == []


def test_a_file_with_other_tables_is_damaged(tmp_path: Path) -> None:
    """One wrong letter in the SQL of a table passes every other check."""
    with opened(tmp_path) as store:
        store.write(FULL)
    data = (tmp_path / FILE_NAME).read_bytes()
    assert b"topic TEXT" in data
    (tmp_path / FILE_NAME).write_bytes(data.replace(b"topic TEXT", b"topik TEXT"))
    with opened(tmp_path) as store:
        assert store.moved_aside is not None
        store.write(FULL)
        assert_full(store)


def test_a_disk_that_damages_a_new_file_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second file is not moved, which could repeat without end."""

    def damaged(*_: object) -> None:
        raise database.Damaged("row 7 missing")

    monkeypatch.setattr(database, "_set_up", damaged)
    with pytest.raises(StoreError, match=r"a new file is damaged too \(row 7 missing\): check the disk"):
        Store(tmp_path).open()
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


def test_a_damaged_file_that_cannot_be_moved_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No new file is created beside it."""

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    (tmp_path / FILE_NAME).write_bytes(b"rubbish" * 1000)
    monkeypatch.setattr(Path, "rename", read_only)
    with pytest.raises(StoreError, match="damaged, and cannot be moved aside: Read-only file system"):
        Store(tmp_path).open()


def test_a_file_that_another_process_has_open_is_not_damaged(tmp_path: Path) -> None:
    """It is an error, and the file stays in place."""
    with opened(tmp_path) as store:
        store.write(FULL)
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="cannot be opened: database is locked"):
            Store(tmp_path).open()
    with opened(tmp_path) as store:
        assert_full(store)


def test_an_old_log_without_its_file_is_ignored(tmp_path: Path) -> None:
    """A kill between two renames leaves one; the new file does not use it."""
    with opened(tmp_path / "a") as store:
        store.write(FULL)
        folder = copy_of_now(tmp_path / "a", tmp_path / "b")
    (folder / FILE_NAME).unlink()
    with opened(folder) as store:
        assert (store.names(), store.commit_no, store.moved_aside) == ([], 0, None)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.integers(1, 200), st.booleans(), st.sampled_from(["state.db", "state.db-wal"]))
def test_a_start_is_possible_after_any_damage(
    tmp_path_factory: pytest.TempPathFactory, place: int, length: int, zeros: bool, name: str
) -> None:
    """Wrong bytes anywhere in the file or its log: it is used or moved aside, and rows are whole or absent.

    Except its first 100 bytes, by which it may become one of a newer version.
    """
    folder = tmp_path_factory.mktemp("damaged")
    with opened(folder / "a") as store:
        rows = {f"s{number}": b"%d" % number * 300 for number in range(40)}
        store.write(
            Commit(schema="f", streams=list(rows.items()), component_states=[("p", s, row) for s, row in rows.items()])
        )
        if name == "state.db":
            checkpoint(store)
        store.write(FULL)
        copy_of_now(folder / "a", folder / "b")
    path = folder / "b" / name
    data = bytearray(path.read_bytes())
    place = 100 + place % (len(data) - 100)
    for index in range(place, min(place + length, len(data))):
        data[index] = 0 if zeros else data[index] ^ 0x55
    path.write_bytes(data)
    with opened(folder / "b") as store:
        for stored in store.rows():
            if stored.name in rows:
                assert stored.row in (None, rows[stored.name])
            store.states_of_stream(stored.name)
        for part in store.components():
            store.states_of_component(part)
        store.positions()
        store.packets("s")
        store.sink_checkpoint("mqtt")
        store.write(FULL)
        assert store.row("a") is not None


# ---- checksums


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_a_checksum_depends_on_where_its_parts_end(one: list[bytes], other: list[bytes]) -> None:
    """The same bytes in other parts give another checksum."""
    assert (checksum(*one) == checksum(*other)) == (one == other)


def test_text_counts_as_its_bytes() -> None:
    """In UTF-8, as in the file."""
    assert checksum("ä", b"x") == checksum("ä".encode(), b"x")


# ---- signs that commits are missing


@pytest.mark.parametrize("table", ["log", "value"])
def test_a_wrong_byte_in_what_cannot_be_left_out_moves_the_file_aside(tmp_path: Path, table: str) -> None:
    """The log of commits, and values such as positions: to continue without them would lose or repeat samples."""
    with opened(tmp_path / "a") as store:
        store.write(FULL)
        assert store.count() == 2
        store.write(FULL)
        copy_of_now(tmp_path / "a", tmp_path / "b")
    change_store(tmp_path / "b", f"UPDATE {table} SET data=x'00'")  # noqa: S608
    with opened(tmp_path / "b") as store:
        assert store.moved_aside is not None
        assert store.names() == []


def test_a_commit_that_is_missing_from_the_log_is_noticed(tmp_path: Path) -> None:
    """Those after it would be applied to the wrong state."""
    with opened(tmp_path / "a") as store:
        for number in range(3):
            store.write(Commit(numbers={"n": number}))
        copy_of_now(tmp_path / "a", tmp_path / "b")
    change_store(tmp_path / "b", "DELETE FROM log WHERE commit_no=2")
    with pytest.raises(StoreError, match="commit 2 is missing or has a wrong checksum"):
        Store(tmp_path / "b").open(repair=False)


def test_a_damaged_output_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The others are sent."""
    with opened(tmp_path) as store:
        store.write(FULL)
    change_store(tmp_path, "UPDATE outbox SET payload='other' WHERE number=1")
    with opened(tmp_path) as store:
        assert [row.number for row in store.sink_checkpoint("mqtt").unacked] == [2]
        assert "sink mqtt: 1 outputs have a wrong checksum and are deleted" in caplog.text
        assert store.outputs_waiting() == {"mqtt": 1}


def test_a_write_ahead_log_that_is_missing_after_a_kill_is_said(tmp_path: Path) -> None:
    """The last commits went with it; after an orderly end there is none."""
    with opened(tmp_path / "a") as store:
        store.write(FULL)
        checkpoint(store)
        copy_of_now(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "state.db-wal").unlink()
    with opened(tmp_path / "b") as store:
        assert "state.db-wal, which had the last commits, is missing" in store.stale
    with opened(tmp_path / "a") as store:
        assert store.stale == ""
        assert not store.clean_shutdown


def test_a_copy_of_the_file_is_said_once(tmp_path: Path) -> None:
    """The original, moved or not, is none."""
    with opened(tmp_path / "a") as store:
        store.write(FULL)
    copy_of_now(tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").rename(tmp_path / "moved")
    with opened(tmp_path / "moved") as store:
        assert store.stale == ""
    with opened(tmp_path / "b") as store:
        assert store.stale.startswith("it is a copy")
    with opened(tmp_path / "b") as store:
        assert store.stale == ""


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_deleted_or_replaced_while_in_use_ends_the_commits(tmp_path: Path, replaced: bool) -> None:
    """They would go to a file that no later start finds."""
    with opened(tmp_path) as store:
        store.write(FULL)
        (tmp_path / FILE_NAME).rename(tmp_path / "other")
        if replaced:
            (tmp_path / FILE_NAME).write_bytes(b"")
        with pytest.raises(StoreError, match="while in use; nothing is acknowledged"):
            store.write(FULL)
