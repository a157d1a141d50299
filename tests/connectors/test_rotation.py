"""Files rotated when they grow too large or too old, without losing a row."""

from __future__ import annotations

import gzip
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from stream_gru.config.connector import SinkContext
from stream_gru.connectors.registry import build_sink
from stream_gru.connectors.sinks.encoders import CsvEncoder, Encoder, JsonEncoder
from stream_gru.connectors.sinks.file import FileSink, FileSinkConfig, file_sink
from stream_gru.connectors.sinks.file_recovery import delete_oldest, rotate, rotated_files, rotated_name
from stream_gru.core.commit_records import FileOffset, SinkCheckpoint
from stream_gru.core.errors import SinkUnavailable
from tests.support import sink_runs
from tests.support.batches import batch, part
from tests.support.paths import ROOT
from tests.support.pipelines import toy_pipeline
from tests.support.sink_runs import NOON, Times

OUTPUTS = toy_pipeline().process(batch(["p"] * 5, list(range(5))))
ROWS = JsonEncoder().encode(OUTPUTS)


def rotating(path: Path, times: Times, size: int = 0, age_s: float = 0, max_files: int = 10) -> FileSink:
    """An open file that rotates."""
    encoder: Encoder = CsvEncoder() if ".csv" in path.name else JsonEncoder()
    sink = FileSink(
        path,
        encoder,
        append=True,
        rotate_bytes=size,
        rotate_s=age_s,
        max_files=max_files,
        clock=times.clock,
        wall=times.wall,
    )
    sink.open(None)
    return sink


def commit_sink(sink: FileSink) -> int:
    """Flush, as if into a store, and commit; return how much of the file was durable then."""
    mark = sink.flush().file_offset
    assert mark is not None
    sink.committed()
    return mark.offset


def file_names(folder: Path) -> list[str]:
    """The files there are."""
    return sorted(path.name for path in folder.iterdir())


def test_a_file_that_grows_too_large_is_rotated_at_a_commit(tmp_path: Path) -> None:
    """All rows of a commit stay together; equal times get a number, the next file starts without rows."""
    times, path = Times(), tmp_path / "out.jsonl"
    sink = rotating(path, times, size=len(ROWS))
    lengths = []
    for _ in range(3):
        sink.write(OUTPUTS)
        lengths.append(commit_sink(sink))
        sink.write(OUTPUTS)
        sink.flush()
        assert not (tmp_path / f"out.20261125T100000Z.{len(lengths)}.jsonl").exists()
        lengths.append(commit_sink(sink))
        assert commit_sink(sink) == 0
    assert lengths == [len(ROWS), 2 * len(ROWS)] * 3
    for _ in range(4):
        sink.write(OUTPUTS)
    commit_sink(sink)
    sink.write(OUTPUTS)
    sink.close()
    first, *others = rotated_files(path)
    assert [other.name for other in others] == [
        "out.20261125T100000Z.1.jsonl",
        "out.20261125T100000Z.2.jsonl",
        "out.20261125T100000Z.3.jsonl",
    ]
    assert first.name == "out.20261125T100000Z.jsonl"
    assert [file.read_bytes() for file in (first, *others, path)] == [2 * ROWS, 2 * ROWS, 2 * ROWS, 4 * ROWS, ROWS]


def test_a_file_that_is_too_old_is_rotated(tmp_path: Path) -> None:
    """Its age counts from when it was opened; a file without rows is never rotated."""
    times, path = Times(), tmp_path / "out.csv"
    sink = rotating(path, times, age_s=60)
    times.now_s = 100
    sink.write(part(OUTPUTS, slice(0, 0)))
    commit_sink(sink)
    assert file_names(tmp_path) == ["out.csv"]
    sink.write(OUTPUTS)
    commit_sink(sink)
    times.now_s = 159
    sink.write(OUTPUTS)
    commit_sink(sink)
    times.now_s = 161
    commit_sink(sink)
    sink.close()
    assert file_names(tmp_path) == ["out.20261125T100140Z.csv", "out.20261125T100241Z.csv", "out.csv"]
    header, rows = CsvEncoder().header(OUTPUTS.spec), CsvEncoder().encode(OUTPUTS)
    assert [path.read_bytes() for path in sorted(tmp_path.iterdir())] == [header + rows, header + rows, b""]


def test_only_the_newest_stay(tmp_path: Path) -> None:
    """Only rotated files count; files with other names are ignored."""
    times, path = Times(), tmp_path / "out.jsonl"
    for name in ("out.old.jsonl", "other.20200101T000000Z.jsonl", "out.20200101T000000Z.csv"):
        (tmp_path / name).touch()
    sink = rotating(path, times, size=1, max_files=2)
    for _ in range(12):
        sink.write(OUTPUTS)
        commit_sink(sink)
    sink.close()
    assert [file.name for file in rotated_files(path)] == [
        "out.20261125T100000Z.10.jsonl",
        "out.20261125T100000Z.11.jsonl",
    ]
    assert len(file_names(tmp_path)) == 6


def test_a_failed_deletion_is_logged_and_does_not_stop_the_sink(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An old file that cannot be deleted (here a folder of its name) is a line in the log."""
    (tmp_path / "out.20200101T000000Z.jsonl").mkdir()
    (tmp_path / "out.20210101T000000Z.jsonl").touch()
    with caplog.at_level(logging.WARNING):
        delete_oldest(tmp_path / "out.jsonl", 1)
    assert "out.20200101T000000Z.jsonl: cannot be deleted" in caplog.text


def test_a_compressed_file_rotates_whole(tmp_path: Path) -> None:
    """Each can be read alone and starts with the header; its compressed size counts."""
    path = tmp_path / "out.csv.gz"
    sink = rotating(path, Times(), size=50)
    for _ in range(3):
        sink.write(OUTPUTS)
        commit_sink(sink)
    sink.close()
    expected = CsvEncoder().header(OUTPUTS.spec) + CsvEncoder().encode(OUTPUTS)
    assert [gzip.decompress(file.read_bytes()) for file in rotated_files(path)] == [expected] * 3
    assert file_names(tmp_path)[0] == "out.20261125T100000Z.1.csv.gz"
    again = rotating(path, Times())  # the file opened last has no rows, and still gets its header
    again.write(OUTPUTS)
    again.close()
    assert gzip.decompress(path.read_bytes()) == expected


def test_an_unfinished_compressed_file_is_rotated_without_a_store(tmp_path: Path) -> None:
    """A file that a kill left without an end keeps its rows; new ones go to a readable file."""
    path = tmp_path / "out.jsonl.gz"
    sink = rotating(path, Times())
    sink.write(OUTPUTS)
    sink.flush()
    left = path.read_bytes()
    sink.close()
    path.write_bytes(left)
    again = rotating(path, Times())
    again.write(OUTPUTS)
    again.close()
    assert gzip.decompress(path.read_bytes()) == ROWS
    (aside,) = rotated_files(path)
    assert aside.read_bytes() == left


def test_a_file_is_never_put_over_another(tmp_path: Path) -> None:
    """Not even when the clock is set back: the newest one has the last name."""
    path = tmp_path / "out.lp.gz"
    for text in "abc":
        path.write_text(text)
        rotate(path, rotated_name(path, NOON - ord(text)))
    assert [file.read_text() for file in rotated_files(path)] == ["a", "b", "c"]


def test_a_deleted_folder_is_an_error(tmp_path: Path) -> None:
    """A rotation that fails is SinkUnavailable."""
    folder = tmp_path / "gone"
    folder.mkdir()
    sink = rotating(folder / "out.jsonl", Times(), size=1)
    (folder / "out.jsonl").unlink()
    folder.rmdir()
    sink.write(OUTPUTS)
    with pytest.raises(SinkUnavailable, match="cannot be written: No such file"):
        sink.flush()
    sink.close()


def test_the_configuration_says_when(tmp_path: Path) -> None:
    """`rotate_bytes`, `rotate_s` and `keep` of a table reach the file; a plain one never rotates."""
    path = tmp_path / "out.jsonl"
    sink = build_sink(FileSinkConfig(path=str(path), rotate_bytes=1, max_files=1), SinkContext("file"))
    plain = file_sink(tmp_path / "plain.jsonl", append=True)
    for one in (sink, plain):
        one.open(None)
        for _ in range(3):
            one.write(OUTPUTS)
            one.flush()
            one.committed()
        one.close()
    assert len(rotated_files(path)) == 1
    assert (tmp_path / "plain.jsonl").read_bytes() == 3 * ROWS


KILLED = """
import os, sys
from pathlib import Path
import msgspec
from stream_gru.connectors.sinks.file import file_sink
from stream_gru.core.commit_records import SinkCheckpoint
from tests.support.sink_runs import OUTPUTS
store = Path(sys.argv[2])
sink = file_sink(Path(sys.argv[1]), append=True, rotate_bytes=1, max_files=10**6)
sink.open(SinkCheckpoint(None))
for n in range(10**6):
    store.with_suffix(".new").write_bytes(msgspec.json.encode((n, sink.flush().file_offset)))
    os.replace(store.with_suffix(".new"), store)
    sink.committed()
    print(n, flush=True)
    sink.write(OUTPUTS)
"""


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv.gz"])
def test_a_killed_process_that_rotates_has_what_it_committed(tmp_path: Path, name: str) -> None:
    """It rotates at every commit and is killed at some instant: every committed row is in some file, once."""
    path, store = tmp_path / name, tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), str(store)], cwd=ROOT, stdout=subprocess.PIPE, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        for _ in range(5):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    commits, mark = msgspec.json.decode(store.read_bytes(), type=tuple[int, FileOffset])
    again = file_sink(path, append=True)
    again.open(SinkCheckpoint(mark))
    again.write(sink_runs.OUTPUTS)
    again.close()
    assert commits > 3
    assert sink_runs.rows_in(path) == sink_runs.encoder_of(path).encode(sink_runs.OUTPUTS) * (commits + 1)
