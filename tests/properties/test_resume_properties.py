"""A read after a restart gives what an uninterrupted read gives after the same position, wherever it was cut."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.connectors.sources.files import FileSource
from stream_gru.connectors.sources.stdin import StdinSource
from stream_gru.core.types import RawMessage
from tests.support.source_reading import drain, keyed_lines, position_of, through_pipe

ROW = st.sampled_from([b"a,b", b"1,2", b"1,2,3", b"", b"\xff", b"7" * 700, b"8" * 3000, b"9" * 9000, b'"x,y', b"5,6\r"])
TEXT = st.tuples(
    st.lists(st.tuples(ROW, st.integers(1, 12)), min_size=1, max_size=8), st.booleans()
).map(lambda t: b"\n".join(b"%s" % row for row, n in t[0] for _ in range(n)) + b"\n" * t[1])  # fmt: skip
BLOCK_ROWS = st.sampled_from([1, 100, 3000])


@given(st.data(), st.lists(TEXT, min_size=1, max_size=3), st.sampled_from(["csv", "jsonl"]), st.booleans())
@settings(max_examples=60)
def test_files_continue_after_any_position(
    data: st.DataObject, texts: list[bytes], kind: str, compressed: bool
) -> None:
    """One or several files, compressed or not, in other blocks, and once more after a second restart."""
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(texts):
            path = Path(folder) / f"{number}.{kind}{'.gz' if compressed else ''}"
            written = text or b"a,b"
            path.write_bytes(gzip.compress(written) if compressed else written)

        def source() -> FileSource:
            return FileSource([f"{folder}/*"], kind, data.draw(BLOCK_ROWS))

        whole = drain(source())
        cut = data.draw(st.integers(0, len(whole) - 1))
        rest = drain(source(), position_of(whole[cut]))
        assert keyed_lines(rest) == keyed_lines(whole[cut + 1 :])
        if rest:
            again = data.draw(st.integers(0, len(rest) - 1))
            assert keyed_lines(drain(source(), position_of(rest[again]))) == keyed_lines(rest[again + 1 :])
            assert position_of(rest[-1]) == position_of(whole[-1])


@given(TEXT, st.lists(TEXT, max_size=2), st.booleans(), BLOCK_ROWS)
@settings(max_examples=60)
def test_of_a_file_that_has_grown_no_line_is_read_twice(
    text: bytes, added: list[bytes], compressed: bool, block_rows: int
) -> None:
    """Appended lines are read; the rest of a line that was passed on without its end is skipped."""
    more = b"".join(added)
    pack = gzip.compress if compressed else bytes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("a.jsonl.gz" if compressed else "a.jsonl")
        path.write_bytes(pack(text))
        whole = drain(FileSource([path], "jsonl", block_rows))
        path.write_bytes(pack(text) + pack(more))
        rest = drain(FileSource([path], "jsonl", block_rows), position_of(whole[-1]) if whole else None)
        wanted = more if text.endswith(b"\n") or not text else more.partition(b"\n")[2]
        assert keyed_lines(rest) == keyed_lines([RawMessage(wanted, "a")])


@given(st.data(), st.integers(0, 400), st.integers(1, 200), st.sampled_from([1, 150]))
@settings(max_examples=25)
def test_parquet_continues_after_any_position(data: st.DataObject, rows: int, group: int, block_rows: int) -> None:
    """With any row groups and block sizes."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def values(messages: list[RawMessage]) -> list[int]:
        found = [pa.ipc.open_stream(message.payload).read_all().column("flow").to_pylist() for message in messages]
        return [value for part in found for value in part]

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("a.parquet", "b.parquet")]
        for number, path in enumerate(paths):
            table = pa.table({"flow": pa.array(range(number, rows + number), pa.int64())})
            parquet.write_table(table, path, row_group_size=group)
        whole = drain(FileSource(paths, "parquet", block_rows))
        cut = data.draw(st.integers(0, len(whole) - 1))
        rest = drain(FileSource(paths, "parquet", data.draw(BLOCK_ROWS)), position_of(whole[cut]))
        assert values(rest) == values(whole[cut + 1 :])


def drawn_portions(data: st.DataObject, text: bytes) -> list[bytes]:
    """The text cut anywhere, in portions that a pipe accepts."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [part[i : i + 20_000] for part in parts for i in range(0, len(part), 20_000)]


@given(st.data(), TEXT, st.booleans(), st.booleans())
@settings(max_examples=80)
def test_repeated_standard_input_continues(data: st.DataObject, text: bytes, header: bool, from_file: bool) -> None:
    """From a pipe in other portions, or from a file; the header is that of the whole input."""
    whole = through_pipe(drawn_portions(data, text), header)
    if not whole:
        return
    cut = data.draw(st.integers(0, len(whole) - 1))
    position = position_of(whole[cut])
    if from_file:
        with tempfile.TemporaryFile() as file:
            file.write(b"of another reader\n" + text)
            file.seek(18)
            rest = drain(StdinSource(header, file.fileno()), position)
    else:
        rest = through_pipe(drawn_portions(data, text), header, position)
    assert keyed_lines(rest) == keyed_lines(whole[cut + 1 :])
    if rest:
        assert position_of(rest[-1]) == position_of(whole[-1])
        assert keyed_lines(through_pipe(drawn_portions(data, text), header, position_of(rest[0]))) == keyed_lines(
            rest[1:]
        )


@given(st.data(), TEXT, TEXT, st.booleans())
@settings(max_examples=60)
def test_a_new_input_through_a_pipe_is_read_from_its_start(
    data: st.DataObject, text: bytes, other: bytes, header: bool
) -> None:
    """From its first byte that differs, as if there had been no earlier input."""
    whole = through_pipe(drawn_portions(data, text), header)
    if not whole:
        return
    position = position_of(whole[data.draw(st.integers(0, len(whole) - 1))])
    place = data.draw(st.integers(0, min(position.offset, 4096) - 1))
    new = text[:place] + (b"#" if text[place : place + 1] != b"#" else b"%") + other
    fresh, got = through_pipe([new[i : i + 9000] for i in range(0, len(new), 9000)], header), through_pipe(
        drawn_portions(data, new), header, position
    )  # fmt: skip
    assert keyed_lines(got) == keyed_lines(fresh)
    assert [position_of(m) for m in got[-1:]] == [position_of(m) for m in fresh[-1:]]
