from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from stream_gru.connectors.sources.files import FileSource, file_format
from stream_gru.connectors.sources.resume import Fingerprint, digest
from stream_gru.connectors.sources.threaded import ThreadedSource
from stream_gru.core.errors import DataError
from stream_gru.core.types import Position, RawMessage
from tests.support.source_reading import TABLE, drain, keyed_lines, position_of

NEXT = "restore it, or read from the beginning with `stream-gru state reset CONFIG --source pump`"


def small_block_source(*paths: Path | str) -> FileSource:
    """A source named pump, of small blocks."""
    return FileSource(paths, file_format(Path(paths[0])), 64, "pump")


def write_recording(path: Path, text: bytes) -> Path:
    """A file with this text, compressed where its name says so."""
    path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)
    return path


def middle(path: Path) -> Position:
    """A position after the first 64 KiB and before the end."""
    messages = drain(small_block_source(path))
    assert len(messages) > 30
    return position_of(messages[25])


CHANGES: list[tuple[str, Callable[[bytes, int], bytes], str]] = [
    ("beginning", lambda text, place: b"time,FLOW" + text[9:], "its beginning differs"),
    ("within", lambda text, place: text[:65_000] + b"#" + text[65_001:], "its beginning differs"),
    (
        "tail",
        lambda text, place: text[: place - 2] + b"#" + text[place - 1 :],
        "the text before that position differs",
    ),
    ("inserted", lambda text, place: text[:70_000] + b"1" + text[70_000:], "the text before that position differs"),
    ("shorter", lambda text, place: text[: place - 100], "it ends after "),
    ("much shorter", lambda text, place: text[:200], "it ends after 200 bytes"),
    ("rows gone", lambda text, place: text[:10], "it ends after 10 bytes"),
    ("emptied", lambda text, place: b"", "it ends after 0 bytes"),
]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize(("change", "why"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_a_file_that_changed_is_refused_when_it_is_opened(
    name: str, change: Callable[[bytes, int], bytes], why: str, tmp_path: Path
) -> None:
    """The error has the file, the position up to which it was read, the difference and the next step."""
    position = middle(write_recording(tmp_path / name, TABLE))
    write_recording(tmp_path / name, change(TABLE, position.offset))
    with pytest.raises(DataError) as error:
        small_block_source(tmp_path / name).open(position)
    expected = f"{tmp_path / name}: was read up to byte {position.offset:,} and has changed since: {why}"
    assert str(error.value).startswith(expected)
    assert str(error.value).endswith(NEXT)


def test_what_comes_behind_the_position_may_change(tmp_path: Path) -> None:
    """That part has not been read yet."""
    path = write_recording(tmp_path / "a.csv", TABLE)
    position = middle(path)
    path.write_bytes(TABLE[: position.offset] + b"7,8\n")
    (message,) = drain(small_block_source(path), position)
    assert (message.payload, message.header) == (b"7,8\n", b"time,flow\n")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    """Whether it is missing, or no pattern matches it any more."""
    path = write_recording(tmp_path / "a.csv", TABLE)
    position = middle(path)
    other = write_recording(tmp_path / "b.csv", TABLE)
    expected = r"a\.csv: was read up to byte .* and is missing.*state reset CONFIG --source pump"
    with pytest.raises(DataError, match=expected):
        small_block_source(other).open(position)
    path.unlink()
    for files in (path, tmp_path / "*.csv"):
        with pytest.raises(DataError, match=expected):
            small_block_source(files).open(position)


def test_a_parquet_file_that_changed_is_refused(tmp_path: Path) -> None:
    """Its size, start and footer must be unchanged."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"flow": [1.0] * 200}), path)
    position = position_of(drain(small_block_source(path))[0])
    assert position.offset == 64
    assert len(drain(small_block_source(path), position)) == 3
    parquet.write_table(pa.table({"flow": [2.0] * 200}), path)
    with pytest.raises(
        DataError, match=r"a\.parquet: was read up to row 64 and has changed since: its size, beginning"
    ):
        small_block_source(path).open(position)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.parquet: was read up to row 64 and is missing"):
        small_block_source(path).open(position)


@pytest.mark.parametrize(
    ("text", "added", "more", "logged"),
    [
        (b"a,b\n1,2\n", b"3,4\n", [b"3,4"], False),
        (b"a,b\n1,2", b"\n3,4\n", [b"3,4"], False),
        (b"a,b\n1,2", b"\r\n3,4\r\n", [b"3,4\r"], False),
        (b"a,b\n1,2", b"5\n3,4\n", [b"3,4"], True),
        (b"a,b\n1,2", b"5", [], True),
        (b"a,b\n1,2", b"", [], False),
        (b"a,b", b"\n1,2\n", [b"1,2"], False),
        (b"a", b",b\n1,2\n", [b"1,2"], False),
    ],
)
def test_a_table_that_has_grown_continues(
    text: bytes, added: bytes, more: list[bytes], logged: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """New lines are read under the header; the completion of a line that was already passed on is skipped, with a
    warning.
    """
    path = write_recording(tmp_path / "a.csv", text)
    position = position_of(drain(small_block_source(path))[-1])
    path.write_bytes(text + added)
    messages = drain(small_block_source(path), position)
    assert [line for _, _, line in keyed_lines(messages)] == more
    assert all(message.header == b"a,b\n" for message in messages)
    assert ("what was added to it since is skipped" in caplog.text) == logged


def test_a_nameless_column_is_named_again(tmp_path: Path) -> None:
    """The header after a restart is completed by the first row, though that row is not read again."""
    path = write_recording(tmp_path / "a.csv", b"a,b\n" + b"1,2,3\n" * 2000)
    first, *rest = drain(small_block_source(path))
    again = drain(small_block_source(path), position_of(first))
    assert {message.header for message in again} == {b'"",a,b\n'} == {first.header}
    assert keyed_lines(again) == keyed_lines(rest)


def test_an_input_that_was_read_to_its_end_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It ends at once; one line at info gives the reason and how to restart."""
    caplog.set_level(logging.INFO)
    path = write_recording(tmp_path / "a.csv", TABLE)
    position = position_of(drain(small_block_source(path))[-1])
    assert not caplog.records
    assert drain(small_block_source(path), position) == []
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == (
        f"pump: was read to its end before, in {path}; "
        "read from the beginning with `stream-gru state reset CONFIG --source pump`"
    )
    write_recording(tmp_path / "b.csv", b"time,flow\n1,2\n")
    caplog.clear()
    assert [message.key for message in drain(small_block_source(tmp_path / "*.csv"), position)] == ["b"]
    assert not caplog.records


def test_a_table_without_rows_is_not_handed_on_again(tmp_path: Path) -> None:
    """Its columns were checked before."""
    path = write_recording(tmp_path / "a.csv", b"time,flow\n")
    (message,) = drain(small_block_source(path))
    assert drain(small_block_source(path), position_of(message)) == []
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"flow": pa.array([], pa.float64())}), path)
    (message,) = drain(small_block_source(path))
    assert drain(small_block_source(path), position_of(message)) == []


def test_a_new_file_before_the_current_one_is_logged_and_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning with its name; files that were read may be deleted, unread ones are read."""
    for name in ("b", "d", "f"):
        write_recording(tmp_path / f"{name}.csv", b"time,flow\n1,2\n")
    pattern = tmp_path / "*.csv"
    _, second, last = drain(small_block_source(pattern))
    (tmp_path / "b.csv").unlink()
    write_recording(tmp_path / "e.csv", b"time,flow\n1,2\n")
    assert [message.key for message in drain(small_block_source(pattern), position_of(second))] == ["e", "f"]
    assert not caplog.records
    write_recording(tmp_path / "c.csv", b"time,flow\n1,2\n")
    assert [message.key for message in drain(small_block_source(pattern), position_of(second))] == ["e", "f"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"pump: {tmp_path}/c.csv: new and sorting before {tmp_path}/d.csv, which was being read; skipped"
    )
    caplog.clear()
    assert drain(small_block_source(pattern), position_of(last)) == []
    assert f"pump: {tmp_path}/c.csv and 1 more: new and sorting before" in caplog.text


def test_of_many_files_the_nearest_are_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A position has a bounded size; a new file among the known ones is logged, the others do not count as new."""
    monkeypatch.setattr("stream_gru.connectors.sources.resume._MAX_NAMES", 3)
    for number in range(0, 20, 2):
        write_recording(tmp_path / f"{number:02}.csv", b"time,flow\n1,2\n")
    pattern = tmp_path / "*.csv"
    position = position_of(drain(small_block_source(pattern))[-1])
    assert len(position.fingerprint) == 16 + 1 + 16 + 1 + 3 * 6
    assert drain(small_block_source(pattern), position) == []
    assert not caplog.records
    write_recording(tmp_path / "15.csv", b"time,flow\n1,2\n")
    assert drain(small_block_source(pattern), position) == []
    assert "15.csv: new and sorting before" in caplog.text


def test_a_check_is_the_same_however_the_text_was_read() -> None:
    """Digests of the first 64 KiB and of the last 512 bytes, in whatever portions the text came."""
    for length in (0, 1, 511, 512, 513, 65_535, 65_536, 65_537, 100_000):
        text = TABLE[:length]
        for step in (1000, 512, 77, 200_000):
            trail = Fingerprint()
            for place in range(0, length, step):
                trail.add(text[place : place + step])
            assert trail.text() == f"{digest(text[:65_536])} {digest(text[-512:])}"


def test_behind_a_queue_positions_and_errors_are_the_same(tmp_path: Path) -> None:
    """Beside other sources a file continues as alone, and the loop gets the error of a changed one."""

    def queued() -> ThreadedSource:
        return ThreadedSource(
            small_block_source(path),
            name="pump",
            queue_size=4,
            queue_bytes=10_000,
            reconnect_max_delay_s=0.0,
            retry=False,
        )

    def read(after: Position | None) -> list[RawMessage]:
        return drain(queued(), after, timeout_s=0.02)

    path = write_recording(tmp_path / "a.csv", TABLE)
    alone = drain(small_block_source(path))
    beside = read(None)
    assert [message.position for message in beside] == [message.position for message in alone]
    position = position_of(beside[30])
    assert keyed_lines(read(position)) == keyed_lines(alone[31:])
    path.write_bytes(b"#" + TABLE)
    with pytest.raises(DataError, match="its beginning differs"):
        read(position)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_position_does_not_depend_on_how_the_path_was_typed(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative, absolute, through a link to the folder, from another working directory."""
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for number in range(2):
        write_recording(tmp_path / "real" / f"{number}{suffix}", b'{"a":1}\n' * 40 if suffix == ".jsonl" else TABLE)
    monkeypatch.chdir(tmp_path / "real")
    relative = (f"0{suffix}", f"1{suffix}")
    messages = drain(small_block_source(*relative))
    position = position_of(messages[-2])
    for folder in (tmp_path / "real", tmp_path / "link", Path(), Path("sub/..")):
        rest = drain(small_block_source(*(folder / name for name in relative)), position)
        assert [one.payload for one in rest] == [messages[-1].payload]
