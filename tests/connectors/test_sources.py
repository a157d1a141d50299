from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stream_gru.config.connector import SourceContext
from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.datasets import read_files
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import build_source
from stream_gru.connectors.sources.files import (
    FileSource,
    ReplaySourceConfig,
    expand,
    file_format,
    shared_stream,
    stem,
)
from stream_gru.connectors.sources.framing import completed_header
from stream_gru.connectors.sources.mqtt import MqttSourceConfig
from stream_gru.connectors.sources.serial import SerialSourceConfig
from stream_gru.connectors.sources.stdin import StdinSource, StdinSourceConfig
from stream_gru.connectors.sources.threaded import ThreadedSource
from stream_gru.core.errors import ConfigError, DataError, SourceUnavailable
from stream_gru.core.types import Position
from tests.support.source_reading import drain, through_pipe


@given(st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"x", b"\n")), max_size=8), st.booleans())
def test_standard_input_gives_the_same_lines_in_any_portions(chunks: list[bytes], header: bool) -> None:
    """Wherever the bytes of a pipe are cut, the lines, and the first one as the header, are the same."""
    whole = b"".join(chunks)
    messages = through_pipe(chunks, header)
    first, _, rest = whole.partition(b"\n") if header else (b"", b"", whole)
    assert b"".join(message.payload for message in messages) == rest
    assert all(message.header.endswith(first) for message in messages)  # a nameless index column is named
    assert bool(messages) == bool(whole)
    assert all(message.payload.endswith(b"\n") for message in messages[:-1])


def test_a_message_of_standard_input_has_its_arrival() -> None:
    """Its arrival is the wall clock's time, and its key is no file."""
    (message,) = through_pipe([b"a\nb\n"], header=False)
    assert (message.arrival_ns, message.key) == (7, "stdin")


def test_standard_input_is_quiet_until_a_line_is_whole() -> None:
    """Half a line is no message; without input a poll returns an empty list within the timeout."""
    reader, writer = os.pipe()
    source = StdinSource(False, reader)
    source.open(None)
    assert source.poll(10, 0.0) == []
    os.write(writer, b"half")
    assert source.poll(10, 0.0) == []
    os.write(writer, b" done\nnext")
    (message,) = source.poll(10, 0.0)
    assert message.payload == b"half done\n"
    os.close(writer)
    assert [m.payload for m in source.poll(10, 0.0)] == [b"next"]
    os.close(reader)


def test_a_line_without_end_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the start of an overlong line is kept, and the lines after it are whole."""
    monkeypatch.setattr("stream_gru.connectors.sources.stdin._MAX_LINE_BYTES", 100)
    messages = through_pipe([b"y" * 90, b"y" * 90, b"y" * 90, b"end\ngood\n"], header=False)
    (first, second) = b"".join(message.payload for message in messages).splitlines()
    assert len(first) <= 200
    assert second == b"good"


def test_closed_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon started without standard input refuses to start; a source that was not opened raises an error."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="standard input: expected lines, got a closed descriptor"):
        StdinSource(False).open(None)
    with pytest.raises(SourceUnavailable, match="standard input: not open"):
        StdinSource(False).poll(1, 0.0)


@given(st.lists(st.sampled_from([b"a,b", b"", b"1", b"x" * 9000, b"\r", b"\xff"]), max_size=12), st.booleans())
def test_a_file_is_read_whole_whatever_its_lines(lines: list[bytes], compressed: bool) -> None:
    """Header and payloads together are the file; positions are those of the text; reading can continue from each."""
    text = b"\n".join(lines)
    assume(text)
    folder = Path(os.environ.get("PYTEST_TMP", "/tmp"))  # noqa: S108 - hypothesis cannot take a fixture
    path = folder / f"stream_gru_{os.getpid()}.csv{'.gz' if compressed else ''}"
    path.write_bytes(gzip.compress(text) if compressed else text)
    try:
        messages = drain(FileSource([path], "csv", 1))
        header = text[: text.find(b"\n") + 1] or text
        assert header + b"".join(message.payload for message in messages) == text
        done = len(header)
        assert messages
        for message in messages:
            done += len(message.payload)
            assert message.header.endswith(header)  # a nameless index column is named
            assert message.position is not None
            assert (message.position.name, message.position.offset) == (str(path), done)
            rest = drain(FileSource([path], "csv", 1), message.position)
            assert b"".join(m.payload for m in rest) == text[done:]
    finally:
        path.unlink()


def test_an_endless_line_of_a_file_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rest is skipped, the lines after it are whole and their position is right."""
    monkeypatch.setattr("stream_gru.connectors.sources.files._MAX_RECORD_BYTES", 5000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"y" * 50_000 + b"\n" + b"good\n" * 2000)
    messages = drain(FileSource([path], "jsonl", 1))
    assert max(len(line) for message in messages for line in message.payload.splitlines()) < 10_000
    assert b"".join(m.payload for m in messages).count(b"good\n") == 2000
    assert messages[-1].position is not None
    assert messages[-1].position.offset == path.stat().st_size
    assert drain(FileSource([path], "jsonl", 1), messages[-1].position) == []


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.csv.gz", gzip.compress(b"time,flow\n" + b"1,2\n" * 9999, mtime=0)[:60]),
        ("not.csv.gz", b"time,flow\n1,2\n"),
        ("changed.csv.gz", gzip.compress(bytes(range(256)) * 50, mtime=0)[:30] + b"\0" * 50),
        ("empty.parquet", b""),
        ("not.parquet", b"PAR1 nothing PAR1"),
    ],
)
def test_a_damaged_file_is_an_error(tmp_path: Path, name: str, data: bytes) -> None:
    """Truncated or changed files are a DataError that names the file."""
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=name):
        drain(FileSource([tmp_path / name], file_format(tmp_path / name), 100))


def test_a_position_of_another_input_is_an_error(tmp_path: Path) -> None:
    """A position in a file that is not among the input is refused; the source does not restart."""
    path = tmp_path / "a.csv"
    path.write_text("time,flow\n1,2\n")
    with pytest.raises(DataError, match=r"b\.csv: was read up to byte 3 and is missing"):
        drain(FileSource([path], "csv", 1), Position("b.csv", 3))


def test_patterns_name_files_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns keep their order, matches are sorted, each file comes once, a name with brackets is a name."""
    monkeypatch.chdir(tmp_path)
    for name in ("b2.csv", "b1.csv", "a[1].csv", "c.csv"):
        Path(name).write_text("time\n")
    Path("folder.csv").mkdir()
    found = expand(["c.csv", "b*.csv", "a[1].csv", "*.csv"])
    assert [path.name for path in found] == ["c.csv", "b1.csv", "b2.csv", "a[1].csv"]
    with pytest.raises(DataError, match=r"x\*\.csv: no such file"):
        expand(["b*.csv", "x*.csv"])
    with pytest.raises(DataError, match=r"^folder\.csv: is a folder; expected files$"):
        expand(["folder.csv"])
    with pytest.raises(DataError, match=r"folder\*: no such file"):
        expand(["c.csv", "folder*"])


@pytest.mark.parametrize(
    ("name", "kind", "stream"),
    [
        ("a.csv", "csv", "a"), ("A.B.CSV.gz", "csv", "A.B"), ("A.CSV.GZ", "csv", "A"),
        ("x.tsv", "csv", "x"), ("x.ndjson", "jsonl", "x"),
        ("x.jsonl.gz", "jsonl", "x"), ("x.parquet", "parquet", "x"), ("plain.txt", "csv", "plain"),
    ],
)  # fmt: skip
def test_a_name_gives_format_and_stream(name: str, kind: str, stream: str) -> None:
    """The suffix gives the format; the rest is the recording's name."""
    assert (file_format(Path(name)), stem(Path(name))) == (kind, stream)


def test_unknown_and_mixed_formats_are_errors() -> None:
    """One decoder reads all files: the error lists the known formats."""
    with pytest.raises(ConfigError, match=r"x\.bin: expected a name ending in \.csv"):
        file_format(Path("x.bin"))
    assert file_format(Path("x.bin"), "jsonl") == "jsonl"
    with pytest.raises(ConfigError, match="expected files of one format, got csv, jsonl"):
        ReplaySourceConfig(files=["a.csv", "b.jsonl"]).record_format("auto")
    with pytest.raises(ConfigError, match="got no files"):
        ReplaySourceConfig(files=[]).record_format("auto")


def test_a_configuration_becomes_its_source() -> None:
    """The daemon opens it; beside others, and at a port, a source reads in its own thread."""
    replay, stdin = ReplaySourceConfig(files=["/nowhere/a.csv"]), StdinSourceConfig(format="jsonl")
    port = SerialSourceConfig(port="loop://", format="json")
    assert type(build_source(replay, SourceContext("replay", "csv"))) is FileSource
    assert type(build_source(stdin, SourceContext("stdin", "jsonl"))) is StdinSource
    assert type(build_source(port, SourceContext("serial", "json"))) is ThreadedSource
    assert type(build_source(stdin, SourceContext("stdin", "jsonl"), alone=False)) is ThreadedSource
    with pytest.raises(ConfigError, match=r"source mqtt: expected a \[\[broker\]\]"):
        build_source(MqttSourceConfig(topics=["a"], format="json"), SourceContext("mqtt", "json"))


def test_a_configured_source_takes_patterns(tmp_path: Path) -> None:
    """Patterns are expanded when the source is opened; before that only where the suffix gives no format."""
    plain, open_end = (ReplaySourceConfig(files=[f"{tmp_path}/*{end}"]) for end in (".csv", ""))
    source = build_source(plain, SourceContext("replay", plain.record_format("auto"), batch_rows=10))
    with pytest.raises(DataError, match="no such file"):
        open_end.record_format("auto")
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("time,flow\n1,2\n")
    assert isinstance(source, FileSource)
    assert [message.key for message in drain(source)] == ["a", "b"]
    kind = open_end.record_format("auto")
    source = build_source(open_end, SourceContext("replay", kind, batch_rows=10))
    assert isinstance(source, FileSource)
    assert ([message.key for message in drain(source)], kind) == (["a", "b"], "csv")


INDEXED = [
    (b"a,b\n", b"1,2,3\n", True),
    (b'"a","b"\r\n', b'"140","x",2.5\r\n', True),
    (b"a;b", b"7;2;3", True),
    (b"\xef\xbb\xbfa,b\n", b"0,2,3\n", True),
    (b"a,b\n", b"2026-03-01T00:00:00Z,2,3\n", False),
    (b"a,b\n", b"1.5,2,3\n", False),
    (b"a,b\n", b"x,2,3\n", False),
    (b"a,b\n", b",2,3\n", False),
    (b"a,b\n", b"1772323200,2,3\n", False),  # a time
    (b"a,b\n", b"1,2,\n", False),  # a delimiter too many
    (b"a,b\n", b"1,2\n", False),
    (b"a,b\n", b"1,2,3,4\n", False),
    (b"\n", b"1\n", False),
    (b"a,b\n", b"", False),
    (b"a,b\n", b'1,2,"3\x00\n', True),
]


@pytest.mark.parametrize(("header", "first", "indexed"), INDEXED)
def test_a_nameless_first_column_is_one_of_row_numbers(header: bytes, first: bytes, indexed: bool) -> None:
    """A header lacks one name only where the line after it has one cell more, the first of them a row's number."""
    plain = header.removeprefix(b"\xef\xbb\xbf")
    assert completed_header(header, first) in ([b'"",' + plain, b'"";' + plain] if indexed else [header])


@pytest.mark.parametrize(("header", "first", "indexed"), INDEXED)
def test_live_and_recorded_tables_have_the_same_header(
    header: bytes, first: bytes, indexed: bool, tmp_path: Path
) -> None:
    """A table reads the same from a file and from a pipe, byte by byte or at once."""
    text = header.rstrip(b"\r\n") + b"\n" + first.rstrip(b"\r\n") + b"\n3,4\n"
    path = tmp_path / "a.csv"
    path.write_bytes(text)
    recorded = drain(FileSource([path], "csv", 1))
    for chunks in ([text], [text[i : i + 1] for i in range(len(text))]):
        live = through_pipe(chunks, header=True)
        assert {message.header for message in live} == {message.header.rstrip(b"\n") for message in recorded}
        assert b"".join(message.payload for message in live) == b"".join(message.payload for message in recorded)


def test_a_table_without_rows_is_a_message_all_the_same(tmp_path: Path) -> None:
    """Its header is passed on once, for the decoder to check; an empty file is a DataError."""
    path = tmp_path / "a.csv"
    for text in (b"time,flow\n", b"time,flow"):
        path.write_bytes(text)
        (message,) = drain(FileSource([path], "csv", 1))
        assert (message.payload, message.header) == (b"", text)
        assert drain(FileSource([path], "csv", 1), message.position) == []
        (message,) = through_pipe([text], header=True)
        assert (message.payload, message.header) == (b"", b"time,flow")
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"/a\.csv: expected a header of CSV names, got an empty file"):
        drain(FileSource([path], "csv", 1))
    assert through_pipe([], header=True) == []


def test_a_parquet_file_without_rows_has_columns(tmp_path: Path) -> None:
    """An empty table is read as one, and refused where it lacks a column."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"time": pa.array([], pa.string()), "flow": pa.array([], pa.float64())}), path)
    with pytest.raises(DataError, match="no row could be read: there is none"):
        read_files([str(path)], Fields(InputConfig(), ("flow",)))
    with pytest.raises(DataError, match=r"/a\.parquet: expected a column 'level', got time, flow"):
        read_files([str(path)], Fields(InputConfig(), ("level",)))


def test_files_of_one_name_are_logged_where_they_would_be_one_stream() -> None:
    """One line names the first two; with a stream column, or distinct names, there is none."""
    paths = [Path("a/p.csv"), Path("q.csv"), Path("b/p.csv.gz"), Path("c/p.csv")]
    (line,) = shared_stream(paths, "")
    assert line == "warning: a/p.csv and b/p.csv.gz (and 1 more) are read as one stream 'p'; see input.stream"
    assert not list(shared_stream(paths, "pump"))
    assert not list(shared_stream(paths[:2], ""))


def test_recordings_are_one_batch(tmp_path: Path) -> None:
    """All files that match come as one batch, a stream for each file."""
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("time,flow\n2024-05-01T12:00:00Z,1\n2024-05-01T12:00:01Z,x\n")
    batch = read_files([str(tmp_path / "*.csv")], Fields(InputConfig(), ("flow",)))
    assert [batch.stream_names[i] for i in batch.stream_index] == ["a", "b"]
    assert batch.received == 4


def test_recordings_without_a_row_are_an_error(tmp_path: Path) -> None:
    """No data to train on is a DataError, with the pattern."""
    (tmp_path / "a.csv").write_text("time,flow\nnever,1\n")
    with pytest.raises(DataError, match=r"a\.csv: no row could be read"):
        read_files([str(tmp_path / "a.csv")], Fields(InputConfig(), ("flow",)))
