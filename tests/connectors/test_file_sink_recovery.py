"""A file sink that continues at a commit: killed between any two system calls, or with a file that changed."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from stream_gru.connectors.sinks.file import file_sink
from stream_gru.connectors.sinks.file_recovery import rotated_files
from stream_gru.core.commit_records import FileOffset, SinkCheckpoint
from stream_gru.core.errors import SinkUnavailable, StateError
from tests.support.sink_runs import FILE_NAMES, OUTPUTS, SinkRun, file_content, folder_content, rows_in

CALLS = ((os, "fsync"), (os, "truncate"), (Path, "rename"), (Path, "unlink"), (Path, "open"))


class Killed(BaseException):
    """The end of a process; nothing catches it."""


class Fuse:
    """Ends the process before or after some of its system calls, counted from 0."""

    def __init__(self, *at: int) -> None:
        self._at, self._calls = set(at), -1

    def __call__(self) -> None:
        """Count an instant at which a kill makes a difference."""
        self._calls += 1
        if self._calls in self._at:
            raise Killed

    @property
    def burnt(self) -> bool:
        """Whether all kills have happened."""
        return not self._at or self._calls >= max(self._at)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Check before and after each call; nothing is synced, as only the process dies, not the machine."""
        with mock.patch("os.fsync"):
            patches = [mock.patch.object(owner, name, self._around(getattr(owner, name))) for owner, name in CALLS]
            for patch in patches:
                patch.start()
            try:
                yield
            finally:
                for patch in patches:
                    patch.stop()

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            self()
            result = call(*args, **kwargs)
            try:
                self()
            except Killed:
                if hasattr(result, "close"):
                    result.close()
                raise
            return result

        return called


def run_through(folder: Path, name: str, fuse: Fuse, lost: bool = False, rotate_bytes: int = 1) -> SinkRun:
    """Write and commit three times, two rows each; after each kill start again."""
    folder.mkdir()
    run = SinkRun(folder / name, rotate_bytes, max_files=2, between=fuse)
    while True:
        with fuse.installed():
            try:
                run.start()
                while run.stored_rows < 6:
                    run.write(2)
                    run.commit()
                run.sink.close()
                return run
            except Killed:
                pass
        run.kill(lost, b'{"half' if lost and run.written > run.stored_rows else b"")


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_kill_between_any_two_system_calls_changes_no_file(tmp_path: Path, name: str, lost: bool) -> None:
    """With a rotation at every commit: the same files with the same rows, also when the next start is killed too."""
    expected = folder_content(run_through(tmp_path / "whole", name, Fuse()).path.parent)
    assert len(expected) == 3
    kills = 0
    for first in range(1000):
        fuse = Fuse(first)
        run = run_through(tmp_path / f"{first}", name, fuse, lost)
        if not fuse.burnt:
            break
        kills += 1
        assert folder_content(run.path.parent) == expected, first
        for more in range(1, 8, 2 if lost else 3):
            run = run_through(tmp_path / f"{first}+{more}", name, Fuse(first, first + more), lost)
            assert folder_content(run.path.parent) == expected, (first, more)
    assert kills > 30


def committed(tmp_path: Path, name: str = "out.jsonl", **options: Any) -> SinkRun:
    """A run that was killed after a commit of four rows, with two more in the file."""
    run = SinkRun(tmp_path / name, **options)
    run.start()
    run.write(4)
    run.commit()
    run.write(2)
    run.kill()
    return run


def test_a_file_shorter_than_what_was_committed_is_damage(tmp_path: Path) -> None:
    """The start is refused with the file, both sizes and the next step; nothing is changed."""
    run = committed(tmp_path)
    assert run.stored is not None
    os.truncate(run.path, 100)
    with pytest.raises(StateError, match=rf"out\.jsonl: has 100 bytes, .*{run.stored.offset} that .* restore it"):
        run.start()
    assert run.path.stat().st_size == 100


@pytest.mark.parametrize("empty", [False, True])
def test_a_deleted_file_is_created_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, empty: bool) -> None:
    """With one warning; its checkpoint in the store is replaced at the next commit."""
    run = committed(tmp_path)
    run.path.rename(tmp_path / "taken.jsonl")
    if empty:
        run.path.touch()
    run.start()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "is missing or empty" in caplog.text
    assert run.stored == FileOffset(str(run.path), 0)
    run.write(2)
    run.kill()
    run.start()
    run.sink.close()
    assert run.path.read_bytes() == b""
    assert len(caplog.records) == 1


def test_the_mark_of_another_file_is_ignored(tmp_path: Path) -> None:
    """After a change of the path the new file is treated as without a store: it is appended to."""
    run = committed(tmp_path)
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"{}\n{half")
    run.path = other
    run.start()
    assert run.stored == FileOffset(str(other), 3)
    run.write(1)
    run.sink.close()
    assert other.read_bytes() == b"{}\n" + run.expected(5)[len(run.expected(4)) :]


def test_a_file_in_place_of_another_knows_no_mark(tmp_path: Path) -> None:
    """Without ``append`` the file restarts, whatever the store has."""
    run = committed(tmp_path)
    sink = file_sink(run.path, append=False)
    sink.open(SinkCheckpoint(run.stored))
    assert sink.flush().file_offset == FileOffset(str(run.path), 0)
    sink.close()
    assert run.path.read_bytes() == b""


@pytest.mark.parametrize("detail", ["{", '{"aside":1}', '{"later":"version"}'])
def test_an_unreadable_mark_is_logged(tmp_path: Path, detail: str) -> None:
    """A checkpoint of another version or from a damaged store does not truncate the file."""
    run = committed(tmp_path)
    assert run.stored is not None
    run.stored = replace(run.stored, detail=detail)
    before = run.path.read_bytes()
    with pytest.raises(StateError, match="its stored offset is not valid"):
        run.start()
    assert run.path.read_bytes() == before


def test_a_compressed_file_is_readable_up_to_each_flush_and_whole_after_a_kill(tmp_path: Path) -> None:
    """A reader sees all rows without an end of the file; the next start completes the gzip member and moves nothing
    aside.
    """
    run = committed(tmp_path, "out.jsonl.gz")
    assert run.stored is not None
    data = run.path.read_bytes()[: run.stored.offset]
    assert zlib.decompressobj(31).decompress(data) == run.expected(4)
    run.start()
    assert gzip.decompress(run.path.read_bytes()) == run.expected(4)
    assert run.path.read_bytes()[: run.stored.offset] == data
    run.write(2)
    run.commit()
    run.sink.close()
    assert file_content(run.path) == run.expected(6)
    assert list(tmp_path.iterdir()) == [tmp_path / "out.jsonl.gz"]


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_clean_end_leaves_a_file_that_fits_its_mark(tmp_path: Path, name: str) -> None:
    """Stopping and starting, with and without rows in between, changes no written row."""
    run = SinkRun(tmp_path / name)
    for rows in (0, 3, 0, 3):
        run.start()
        run.write(rows)
        run.commit()
        run.sink.close()
        assert rows_in(run.path) == run.expected(run.stored_rows)
    assert run.stored_rows == 6


@pytest.mark.parametrize("uncommitted", [0, 5])
def test_a_rotated_file_may_be_deleted_before_the_next_commit(tmp_path: Path, uncommitted: int) -> None:
    """The next file is not taken for the one that was to be rotated, be it shorter or longer."""
    run = SinkRun(tmp_path / "out.jsonl", rotate_bytes=1)
    run.start()
    run.write(3)
    before = run.flush()
    run.store(before)
    run.sink.committed()
    (aside,) = rotated_files(run.path)
    taken = aside.read_bytes()
    aside.unlink()
    run.write(uncommitted)
    run.kill()
    run.start()
    assert rotated_files(run.path) == []
    run.write(5)
    run.commit()
    run.sink.close()
    assert taken + rows_in(run.path) == run.expected(8)


def test_a_file_is_not_rotated_with_rows_after_its_mark(tmp_path: Path) -> None:
    """Rows that came between flush and committed wait for the next commit, which rotates them with the others."""
    run = SinkRun(tmp_path / "out.jsonl.gz", rotate_bytes=1)
    run.start()
    run.write(2)
    run.store(run.flush())
    run.write(2)
    run.sink.committed()
    assert list(tmp_path.iterdir()) == [tmp_path / "out.jsonl.gz"]
    run.commit()
    run.sink.close()
    (aside,) = rotated_files(run.path)
    assert file_content(aside) == run.expected(4)


def test_the_newest_file_has_the_last_name_though_the_clock_was_set_back(tmp_path: Path) -> None:
    """So that the oldest of the rotated rows are deleted first."""
    run = SinkRun(tmp_path / "out.jsonl", rotate_bytes=1, max_files=2)
    run.start()
    for now_s in (10.0, 5.0, 0.0):
        run.times.now_s = now_s
        run.write(2)
        run.commit()
    run.sink.close()
    assert rows_in(run.path) == run.expected(6)[len(run.expected(2)) :]


def test_a_quiet_commit_costs_no_sync(tmp_path: Path) -> None:
    """A flush without new rows gives the same checkpoint and does no disk access; a new file's name is synced once."""
    run = SinkRun(tmp_path / "out.jsonl")
    run.start()
    run.write(2)
    with mock.patch("os.fsync") as sync:
        first = run.flush()
        assert sync.call_count == 2  # the file and its folder
        assert run.flush() == first
        assert sync.call_count == 2
        run.write(2)
        assert run.flush() != first
        assert sync.call_count == 3
    run.sink.close()


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_file_that_grows_old_without_rows_is_announced_and_rotated_whole(tmp_path: Path, name: str) -> None:
    """Without a row since the last commit, the rotation is still in a checkpoint before any file is renamed."""
    run = SinkRun(tmp_path / name, rotate_s=60)
    run.start()
    run.write(2)
    run.commit()
    run.times.now_s = 60
    plan = run.flush()
    assert plan != run.stored
    run.store(plan)
    run.kill(left=b"rubbish")
    run.start()
    run.sink.close()
    assert len(rotated_files(run.path)) == 1
    assert rows_in(run.path) == run.expected(2)


def test_a_file_that_was_there_before_the_store_is_synced_before_it_is_marked(tmp_path: Path) -> None:
    """It is unknown what its writer has synced."""
    run = SinkRun(tmp_path / "out.jsonl")
    run.path.write_bytes(b"{}\n")
    with mock.patch("os.fsync") as sync:
        run.start()
    assert sync.call_count == 1
    assert run.stored == FileOffset(str(run.path), 3)
    run.sink.close()


def test_without_a_store_the_same_calls_rotate(tmp_path: Path) -> None:
    """`flush` and `committed` suffice; a kill between them leaves a file that is appended to."""
    path = tmp_path / "out.csv.gz"
    killed, sink = (file_sink(path, append=True, rotate_bytes=1) for _ in range(2))
    for one in (killed, sink):
        one.open(None)
        one.write(OUTPUTS)
        one.flush()
    assert list(tmp_path.iterdir()) == [tmp_path / "out.csv.gz"]
    sink.committed()
    sink.close()
    killed.close()
    assert len(rotated_files(path)) == 1
    assert rows_in(path).count(b"\n") == 2 * len(OUTPUTS)


def test_a_failed_rotation_is_an_error(tmp_path: Path) -> None:
    """A missing folder is SinkUnavailable; closing raises nothing then."""
    run = SinkRun(tmp_path / "out.jsonl", rotate_bytes=1)
    run.start()
    run.write(2)
    run.flush()
    run.path.unlink()
    with pytest.raises(SinkUnavailable, match="cannot be written: No such file"):
        run.sink.committed()
    run.sink.close()


@pytest.mark.parametrize("name", FILE_NAMES)
@pytest.mark.parametrize("moved", [True, False])
def test_rows_go_to_a_new_file_when_the_old_one_is_moved_or_deleted(tmp_path: Path, name: str, moved: bool) -> None:
    """At the next commit; a moved file is whole, and a kill afterwards continues the new one."""
    run = SinkRun(tmp_path / name, 0)
    run.start()
    run.write(2)
    run.commit()
    run.write(1)
    (tmp_path / name).rename(tmp_path / f"moved-{name}")
    if not moved:
        (tmp_path / f"moved-{name}").unlink()
    run.commit()
    first = run.stored_rows
    run.write(2)
    run.commit()
    run.kill(lost=False)
    run.start()
    run.write(1)
    run.commit()
    run.sink.close()
    assert first == 3
    if moved:
        assert rows_in(tmp_path / f"moved-{name}") == run.expected(3)
    assert rows_in(tmp_path / name) == run.expected(6).removeprefix(run.expected(3))
