"""Every source, over every kind of input, fulfils every clause of the Source contract."""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import load_decoder
from stream_gru.connectors.sources.files import FileSource
from stream_gru.connectors.sources.stdin import StdinSource
from stream_gru.core.errors import DataError, EndOfInput
from stream_gru.core.protocols import Source
from stream_gru.core.types import Position, RawMessage
from tests.support.source_reading import drain, position_of

RECORD_COUNT = 2000
RECORDS = {
    "csv": ["time,flow", *(f"{i},{i * 2}" for i in range(RECORD_COUNT))],
    "jsonl": [f'{{"time":{i},"flow":{i * 2}}}' for i in range(RECORD_COUNT)],
}


@dataclass
class SourceCase:
    """A fresh source for each call of ``make``, its format, and whether it can continue after a position."""

    make: Callable[[], Source]
    kind: str
    seekable: bool = False
    missing: Callable[[], Source] | None = None
    closing: list[int] = field(default_factory=list)


@contextmanager
def file_source(kind: str, compressed: bool) -> Iterator[SourceCase]:
    """Two files, the second one without a line end at its end."""
    with tempfile.TemporaryDirectory() as folder:
        half = len(RECORDS[kind]) // 2
        head = RECORDS[kind][:1] if kind == "csv" else []
        parts = ["\n".join(RECORDS[kind][:half]) + "\n", "\n".join(head + RECORDS[kind][half:])]
        paths = []
        for name, text in zip("ab", parts, strict=True):
            paths.append(Path(folder) / f"{name}.{kind}{'.gz' if compressed else ''}")
            paths[-1].write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
        gone = Path(folder) / f"gone.{kind}"
        yield SourceCase(lambda: FileSource(paths, kind, 1), kind, True, lambda: FileSource([*paths, gone], kind, 1))


@contextmanager
def parquet_case() -> Iterator[SourceCase]:
    """One file of several row groups."""
    import pyarrow as pa
    from pyarrow import parquet

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.parquet"
        table = pa.table({"time": list(range(RECORD_COUNT)), "flow": [i * 2.0 for i in range(RECORD_COUNT)]})
        parquet.write_table(table, path, row_group_size=100)
        gone = Path(folder) / "gone.parquet"
        yield SourceCase(
            lambda: FileSource([path], "parquet", 1), "parquet", True, lambda: FileSource([gone], "parquet", 1)
        )


@contextmanager
def stdin_case(kind: str) -> Iterator[SourceCase]:
    """A pipe that holds everything, the same each time, and is closed at its other end."""
    opened: list[int] = []

    def make() -> Source:
        reader, writer = os.pipe()
        opened.append(reader)
        os.write(writer, "\n".join(RECORDS[kind]).encode())
        os.close(writer)
        return StdinSource(kind == "csv", reader, wall_ns=lambda: 5)

    yield SourceCase(make, kind, True)
    for descriptor in opened:
        os.close(descriptor)


SOURCES: dict[str, Callable[[], AbstractContextManager[SourceCase]]] = {
    "file_csv": lambda: file_source("csv", False),
    "file_csv_gz": lambda: file_source("csv", True),
    "file_jsonl": lambda: file_source("jsonl", False),
    "file_jsonl_gz": lambda: file_source("jsonl", True),
    "file_parquet": parquet_case,
    "stdin_csv": lambda: stdin_case("csv"),
    "stdin_jsonl": lambda: stdin_case("jsonl"),
}


def flows(case: SourceCase, messages: list[RawMessage]) -> list[float]:
    """The values of all samples, in order."""
    batch = load_decoder(case.kind, Fields(InputConfig(time_unit="s"), ("flow",))).decode(messages)
    assert not batch.rejected
    return batch.values[:, 0].tolist()


def check_is_a_source(case: SourceCase) -> None:
    """It has the four methods."""
    assert isinstance(case.make(), Source)


def check_everything_arrives_once_in_order(case: SourceCase) -> None:
    """All samples arrive, in order, for any block size."""
    assert flows(case, drain(case.make())) == [i * 2 for i in range(RECORD_COUNT)]


def check_messages_are_whole_lines(case: SourceCase) -> None:
    """A line is never split between two messages."""
    if case.kind == "parquet":
        return
    lines = [line for message in drain(case.make()) for line in message.payload.decode().splitlines()]
    assert lines == [line for line in RECORDS[case.kind] if line != "time,flow"]


def check_the_end_stays_the_end(case: SourceCase) -> None:
    """After the last message every poll raises EndOfInput."""
    source = case.make()
    source.open(None)
    drained = False
    while not drained:
        try:
            source.poll(10, 1.0)
        except EndOfInput:
            drained = True
    for _ in range(3):
        with pytest.raises(EndOfInput):
            source.poll(10, 1.0)
    source.close()


def check_source_closes_twice(case: SourceCase) -> None:
    """Closing twice, in the middle, or without opening, raises nothing."""
    source = case.make()
    source.close()
    source.open(None)
    source.poll(10, 1.0)
    source.close()
    source.close()


def check_it_continues_after_a_position(case: SourceCase) -> None:
    """From the position of any message on, exactly the samples after it are read."""
    if not case.seekable:
        return
    messages = drain(case.make())
    assert len(messages) > 2
    half = RECORD_COUNT // 2  # the end of the first file, and of a row group
    near = {edge + offset for edge in (0, half, len(messages)) for offset in range(-2, 3)}
    for index in sorted(near.intersection(range(len(messages))).union(range(0, len(messages), 97))):
        rest = drain(case.make(), position_of(messages[index]))
        expected = flows(case, messages[index + 1 :]) if index + 1 < len(messages) else []
        assert (flows(case, rest) if rest else []) == expected


def check_commit_is_taken(case: SourceCase) -> None:
    """A position can be acknowledged at any time."""
    source = case.make()
    source.open(None)
    source.poll(10, 1.0)
    source.commit(Position("a", 1))
    source.close()


def check_an_input_that_is_not_there_is_told(case: SourceCase) -> None:
    """The constructor has no side effects; opening raises for a missing input, and does not wait for a recording."""
    if case.missing is None:
        return
    source = case.missing()
    with pytest.raises(DataError, match=r"gone\.\w+: no such file"):
        source.open(None)


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


def _source_row(name: str) -> object:
    missing = name == "file_parquet" and find_spec("pyarrow") is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason="pyarrow is not installed"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [_source_row(name) for name in sorted(SOURCES)])
def test_source_contract(name: str, check: Callable[[SourceCase], None]) -> None:
    """Every source fulfils every clause."""
    with SOURCES[name]() as case:
        check(case)
