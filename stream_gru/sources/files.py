"""Recorded files, one after the other: CSV and JSON lines (plain or gzip), Parquet."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from stream_gru.config.schema import Format
from stream_gru.errors import ConfigError, DataError, EndOfInput, SourceUnavailable
from stream_gru.types import Position, RawMessage

_BYTES_PER_ROW = 64
_MAX_RECORD_BYTES = 1024 * 1024
_SUFFIXES = {".csv": "csv", ".txt": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def file_format(path: Path, stated: Format = "auto") -> str:
    """``csv``, ``jsonl`` or ``parquet``: as stated, else by the file's name.  Raises ConfigError."""
    if stated != "auto":
        return stated
    name = path.name.lower().removesuffix(".gz")
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix):
            return kind
    raise ConfigError(f"{path}: expected a name ending in {', '.join(_SUFFIXES)} (or .gz), or input.format stated")


def expand(patterns: Sequence[str]) -> list[Path]:
    """Return the files that match the patterns, in the order of the patterns, sorted within one.  Raises DataError."""
    found: list[Path] = []
    for pattern in patterns:
        # A file's own name comes first: it may hold brackets.
        plain = [pattern] if Path(pattern).is_file() else []
        matches = plain or sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute patterns
        if not matches:
            raise DataError(f"{pattern}: no such file")
        found.extend(path for path in map(Path, matches) if path.is_file() and path not in found)
    return found


def stem(path: Path) -> str:
    """The name of a recording: that of its file without endings."""
    name = path.name.removesuffix(".gz")
    return name.rsplit(".", 1)[0] if "." in name else name


class FileSource:
    """Reads whole lines in blocks of about ``block_rows`` rows; a message's header is the first line of a CSV file.

    Positions are bytes of the uncompressed text.
    """

    def __init__(self, paths: Sequence[Path], kind: str, block_rows: int) -> None:
        self._paths = list(paths)
        self._kind = kind
        self._block_bytes = max(4096, block_rows * _BYTES_PER_ROW)
        self._messages: Iterator[RawMessage] = iter(())

    def open(self, position: Position | None) -> None:
        """Start at the first file, or after ``position``.  Raises SourceUnavailable when a file is not there."""
        for path in self._paths:
            if not path.is_file():
                raise SourceUnavailable(f"{path}: no such file")
        self._messages = self._read_all(position)

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return the next block.  Raises EndOfInput after the last, DataError when a file is damaged."""
        for message in self._messages:
            return [message]
        raise EndOfInput

    def commit(self, position: Position) -> None:
        """A file needs no acknowledgement."""

    def close(self) -> None:
        """Let go of the file."""
        self._messages = iter(())

    def _read_all(self, position: Position | None) -> Iterator[RawMessage]:
        paths = self._paths
        if position is not None:
            names = [str(path) for path in paths]
            if position.name not in names:
                raise SourceUnavailable(f"{position.name}: this file was being read and is no longer among the input")
            paths = paths[names.index(position.name) :]
        for path in paths:
            offset = position.offset if position is not None and str(path) == position.name else 0
            try:
                yield from self._read_parquet(path) if self._kind == "parquet" else self._read_lines(path, offset)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path}: cannot be read: {error}") from error

    def _read_lines(self, path: Path, offset: int) -> Iterator[RawMessage]:
        key = stem(path)
        with _open(path) as file:
            header = file.readline(_MAX_RECORD_BYTES) if self._kind == "csv" else b""
            place = max(offset, len(header))
            header = _with_index_column(header, file.readline(_MAX_RECORD_BYTES))
            file.seek(place)
            rest = b""
            while block := file.read(self._block_bytes):
                place += len(block)
                cut = block.rfind(b"\n") + 1
                if not cut:
                    rest = _bounded(rest + block)
                    continue
                payload, rest = rest + block[:cut], block[cut:]
                yield RawMessage(payload, key, header, position=Position(str(path), place - len(rest)))
            if rest:
                yield RawMessage(rest, key, header, position=Position(str(path), place))

    def _read_parquet(self, path: Path) -> Iterator[RawMessage]:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as error:
            raise ConfigError(f"{path}: Parquet needs pyarrow: pip install 'stream-gru[parquet]'") from error
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=self._block_bytes // _BYTES_PER_ROW):
                    buffer = io.BytesIO()
                    with pa.ipc.new_stream(buffer, batch.schema) as writer:
                        writer.write_batch(batch)
                    yield RawMessage(buffer.getvalue(), stem(path))
        except pa.ArrowException as error:
            raise DataError(f"{path}: not a Parquet file: {error}") from error


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _with_index_column(header: bytes, first: bytes) -> bytes:
    """Name the nameless column of a table whose rows begin with a number of their own, as some tools write it."""
    delimiter = max((b",", b";", b"\t"), key=header.count)
    try:
        names, cells = (
            next(csv.reader([line.decode("utf-8", "replace").rstrip("\r\n")], delimiter=delimiter.decode()), [])
            for line in (header, first)
        )
    except csv.Error:
        return header
    nameless = names and len(cells) == len(names) + 1 and cells[-1]
    return b'""' + delimiter + header if nameless else header


def _bounded(line: bytes) -> bytes:
    """Keep of a line without end only as much as shows that it is too long."""
    return line[:_MAX_RECORD_BYTES]
