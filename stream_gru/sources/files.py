"""Recorded files, one after the other: CSV and JSON lines (plain or gzip), Parquet."""

from __future__ import annotations

import glob
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from stream_gru.config.kinds import Format
from stream_gru.errors import ConfigError, DataError, EndOfInput
from stream_gru.sources.header import completed_header
from stream_gru.types import Position, RawMessage, SourceHealth

_BYTES_PER_ROW = 64
_MAX_RECORD_BYTES = 1024 * 1024
_SUFFIXES = {".csv": "csv", ".txt": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def file_format(path: Path, stated: Format = "auto") -> str:
    """``csv``, ``jsonl`` or ``parquet``: as stated, else by the file's name.  Raises ConfigError."""
    kind = named_format(path) if stated == "auto" else stated
    if kind:
        return kind
    raise ConfigError(f"{path}: expected a name ending in {', '.join(_SUFFIXES)} (or .gz), or input.format stated")


def named_format(path: Path) -> str:
    """The format that the end of a name tells, else ``""``."""
    name = path.name.lower().removesuffix(".gz")
    return next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), "")


def expand(patterns: Sequence[str]) -> list[Path]:
    """Return the files that match the patterns, in the order of the patterns, sorted within one.

    Raises DataError for a pattern that no file matches.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        # A file's own name comes first: it may hold brackets.
        plain = [pattern] if Path(pattern).is_file() else []
        matches = plain or sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - absolute patterns
        files = [path for path in map(Path, matches) if path.is_file()]
        if not files and Path(pattern).is_dir():
            raise DataError(f"{pattern}: is a folder; expected files")
        if not files:
            raise DataError(f"{pattern}: no such file")
        found.update(dict.fromkeys(files))
    return list(found)


def stem(path: Path) -> str:
    """The name of a recording: that of its file without endings."""
    name = path.name[:-3] if _is_gzip(path) else path.name
    return name.rsplit(".", 1)[0] if "." in name else name


class FileSource:
    """Reads whole lines in blocks of about ``block_rows`` rows; a message's header is the first line of a CSV file.

    ``files`` are names or patterns, looked for when the source is opened.  A table without rows is a message without
    payload, so that its columns are checked.  Positions are bytes of the uncompressed text, or rows of Parquet.
    """

    def __init__(self, files: Sequence[Path | str], kind: str, block_rows: int) -> None:
        self._files = [str(file) for file in files]
        self._kind = kind
        self._block_bytes = max(4096, block_rows * _BYTES_PER_ROW)
        self._messages: Iterator[RawMessage] = iter(())

    def open(self, position: Position | None) -> None:
        """Start at the first file, or after ``position``.  Raises DataError when a file is not there."""
        self._messages = self._read_all(expand(self._files), position)

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

    def health(self) -> SourceHealth:
        """A file is always there."""
        return SourceHealth()

    def _read_all(self, paths: list[Path], position: Position | None) -> Iterator[RawMessage]:
        if position is not None:
            names = [str(path) for path in paths]
            if position.name not in names:
                raise DataError(f"{position.name}: this file was being read and is no longer among the input")
            paths = paths[names.index(position.name) :]
        read = self._read_parquet if self._kind == "parquet" else self._read_lines
        for path in paths:
            offset = position.offset if position is not None and str(path) == position.name else 0
            try:
                yield from read(path, offset)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path}: cannot be read: {error}") from error

    def _read_lines(self, path: Path, offset: int) -> Iterator[RawMessage]:
        key, header, place, rest = stem(path), b"", offset, b""
        with _open(path) as file:
            if self._kind == "csv":
                header = file.readline(_MAX_RECORD_BYTES)
                if not header:
                    raise DataError(f"{path}: expected a header of CSV names, got an empty file")
                place = max(offset, len(header))
                header = completed_header(header, file.readline(_MAX_RECORD_BYTES))
            unseen = bool(header) and not offset  # nobody has looked at the header yet
            file.seek(place)
            while block := file.read(self._block_bytes):
                place += len(block)
                cut = block.rfind(b"\n") + 1
                if not cut:
                    rest = _bounded(rest + block)
                    continue
                payload, rest = rest + block[:cut], block[cut:]
                yield RawMessage(payload, key, header, position=Position(str(path), place - len(rest)))
                unseen = False
            if rest or unseen:
                yield RawMessage(rest, key, header, position=Position(str(path), place))

    def _read_parquet(self, path: Path, offset: int) -> Iterator[RawMessage]:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as error:
            raise ConfigError(f"{path}: Parquet needs pyarrow: pip install 'stream-gru[parquet]'") from error
        done = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=self._block_bytes // _BYTES_PER_ROW):
                    done += batch.num_rows
                    if done > offset:
                        rows = batch.slice(max(0, offset - done + batch.num_rows))
                        yield RawMessage(_stream(batch.schema, rows), stem(path), position=Position(str(path), done))
                if not done:
                    yield RawMessage(_stream(file.schema_arrow), stem(path), position=Position(str(path), 0))
        except pa.ArrowException as error:
            raise DataError(f"{path}: not a Parquet file: {error}") from error


def _stream(schema: Any, *batches: Any) -> bytes:
    """Record batches as an Arrow IPC stream."""
    import pyarrow as pa

    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return buffer.getvalue()


def _is_gzip(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if _is_gzip(path) else path.open("rb")  # type: ignore[return-value]


def _bounded(line: bytes) -> bytes:
    """Keep of a line without end only as much as shows that it is too long."""
    return line[:_MAX_RECORD_BYTES]
