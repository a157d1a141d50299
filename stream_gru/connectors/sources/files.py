"""Recorded files, one after the other: CSV and JSON lines (plain or gzip), Parquet."""

from __future__ import annotations

import glob
import gzip
import io
import logging
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from msgspec import Meta

from stream_gru.config.connector import SourceContext, SourceTable
from stream_gru.config.field_types import FileFormat, NonNegative
from stream_gru.config.problems import Problem
from stream_gru.connectors.decoders.field_map import stream_id
from stream_gru.connectors.sources.framing import completed_header
from stream_gru.connectors.sources.resume import (
    Fingerprint,
    changed_input,
    digest,
    fingerprint_up_to,
    index_of,
    missing_file,
    reset_hint,
    stored_name,
    with_earlier_names,
)
from stream_gru.core.errors import ConfigError, DataError, EndOfInput
from stream_gru.core.types import Position, RawMessage, SourceHealth

log = logging.getLogger(__name__)

_BYTES_PER_ROW = 64
_LEAST_BLOCK_BYTES = 256
_FOOTER_BYTES = 65_536
_MAX_RECORD_BYTES = 1024 * 1024
_SUFFIXES = {".csv": "csv", ".txt": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


class ReplaySourceConfig(SourceTable, frozen=True, kw_only=True, tag="replay"):
    """Recorded files, one after the other."""

    files: Annotated[
        list[str],
        Meta(description="Files, or patterns such as recordings/*.csv, in this order.", examples=[["pump-4.csv"]]),
    ]
    format: Annotated[
        FileFormat, Meta(description='Format of the files; "auto": as [input] says, else by their names.')
    ] = "auto"
    speed: Annotated[
        NonNegative,
        Meta(description="Multiple of the recorded speed; 60: a minute in a second; 0: as fast as possible."),
    ] = 0.0

    live = False
    reader = "loop"

    @property
    def path_keys(self) -> Sequence[str]:
        """The files."""
        return ("files",)

    @property
    def replay_speed(self) -> float:
        """As the key says."""
        return self.speed

    def problems(self) -> Iterator[Problem]:
        """There is something to replay."""
        if not self.files:
            yield Problem(("files",), "at least one file", "none")

    def record_format(self, file_format: str) -> str:
        """As stated here or in [input], else by the names of the files.

        Folders are searched only for a pattern whose own end names no format, such as ``recordings/*``.
        """
        stated = file_format if self.format == "auto" else self.format
        return common_format(_telling(self.files, stated), stated)

    def verify(self) -> None:
        """Each name or pattern matches a file."""
        expand(self.files)

    def build(self, context: SourceContext) -> FileSource:
        """Return the source.  A paced recording with a store is committed between its blocks: they are small."""
        rows = 1 if self.speed and context.state_dir else context.batch_rows
        return FileSource(self.files, context.format, rows, context.name)

    def input_warnings(self, stream_field: str) -> Iterator[str]:
        """Yield one line when files of one name are read as one stream."""
        return shared_stream(expand(self.files), stream_field)

    def continues(self, before: SourceTable) -> bool:
        """A position belongs to a list of files."""
        return isinstance(before, ReplaySourceConfig) and before.files == self.files


def shared_stream(paths: Sequence[Path], stream_field: str) -> Iterator[str]:
    """Yield one warning when files of one name would be taken for one device, as no column names it."""
    if stream_field:
        return
    first: dict[str, Path] = {}
    twice = [(first[name], path) for path in paths if first.setdefault(name := stream_id(stem(path)), path) != path]
    if twice:
        one, other = twice[0]
        more = f" (and {len(twice) - 1:,} more)" if len(twice) > 1 else ""
        yield f"warning: {one} and {other}{more} are read as one stream {stream_id(stem(one))!r}; see input.stream"


def common_format(paths: Sequence[Path], stated: str) -> str:
    """The one format of all files: as stated, else by their names.  Raises ConfigError."""
    kinds = {file_format(path, stated) for path in paths}
    if len(kinds) != 1:
        raise ConfigError(f"files: expected files of one format, got {', '.join(sorted(kinds)) or 'no files'}")
    return kinds.pop()


def _telling(files: Sequence[str], stated: str) -> list[Path]:
    """The names, where these tell the formats of all files; for a pattern that does not, the files that match it."""
    paths: list[Path] = []
    for name in files:
        unclear = stated == "auto" and glob.has_magic(name) and not named_format(Path(name))
        paths += expand([name]) if unclear else [Path(name)]
    return paths


def file_format(path: Path, stated: str = "auto") -> str:
    """``csv``, ``jsonl`` or ``parquet``: as stated, else by the file's name.  Raises ConfigError."""
    kind = named_format(path) if stated == "auto" else stated
    if kind:
        return kind
    raise ConfigError(f"{path}: expected a name ending in {', '.join(_SUFFIXES)} (or .gz), or input.format stated")


def named_format(path: Path) -> str:
    """The format that the end of a name stands for, else ``""``."""
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

    ``files`` are names or patterns, resolved when the source is opened; ``name`` is that of the source.  A table
    without rows is a message without payload, so that its columns are checked.  Positions are bytes of the uncompressed
    text, or rows of Parquet, with a fingerprint of the file and of those before it (`resume`).
    """

    def __init__(self, files: Sequence[Path | str], kind: str, block_rows: int, name: str = "replay") -> None:
        self._files = [str(file) for file in files]
        self._kind, self._name = kind, name
        self._block_bytes = max(_LEAST_BLOCK_BYTES, block_rows * _BYTES_PER_ROW)
        self._messages: Iterator[RawMessage] = iter(())

    def open(self, position: Position | None) -> None:
        """Start at the first file, or after ``position``: what was appended since is read, a changed file is an error.

        Raises DataError when a file is missing, or is not the one of ``position``.
        """
        if position is not None and not Path(position.name).is_file():
            raise missing_file(position, self._name, self._unit)
        self._messages = self._read_all(expand(self._files), position)
        if position is None:
            return
        first = next(self._messages, None)  # opens the file now
        if first is not None:
            self._messages = chain([first], self._messages)
        else:
            log.info("%s: was read to its end before, in %s; %s", self._name, position.name, reset_hint(self._name))

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return the next block.  Raises EndOfInput after the last, DataError when a file is damaged."""
        for message in self._messages:
            return [message]
        raise EndOfInput

    def commit(self, position: Position) -> None:
        """A file needs no acknowledgement."""

    def close(self) -> None:
        """Close the file."""
        self._messages = iter(())

    def health(self) -> SourceHealth:
        """A file is always connected."""
        return SourceHealth()

    @property
    def _unit(self) -> str:
        return "row" if self._kind == "parquet" else "byte"

    def _read_all(self, paths: list[Path], position: Position | None) -> Iterator[RawMessage]:
        read = self._read_parquet if self._kind == "parquet" else self._read_lines
        begin = index_of(paths, position, self._name) if position is not None else 0
        for path, earlier in with_earlier_names(paths, begin):
            try:
                yield from read(path, earlier, position)
            except (OSError, EOFError, zlib.error) as error:
                raise DataError(f"{path}: cannot be read: {error}") from error
            position = None  # the next files are read from their beginnings

    def _read_lines(self, path: Path, earlier: str, after: Position | None) -> Iterator[RawMessage]:
        key, name, header, seen = stem(path), stored_name(path), b"", Fingerprint()
        with _open(path) as file:
            if self._kind == "csv":
                header = file.readline(_MAX_RECORD_BYTES)
                if not header and after is None:
                    raise DataError(f"{path}: expected a header of CSV names, got an empty file")
                seen.add(header)
                header = completed_header(header, file.readline(_MAX_RECORD_BYTES))
            if after is None:
                file.seek(seen.length)
            else:
                seen = self._continued(file, name, after, seen.length)
            unseen = bool(header) and after is None  # the header was not checked yet
            for lines in _whole_lines(file, self._block_bytes, seen):
                position = Position(name, seen.length, seen.text() + earlier)
                yield RawMessage(lines, key, header, 0, position, topic=str(path))
                unseen = False
            if unseen:
                position = Position(name, seen.length, seen.text() + earlier)
                yield RawMessage(b"", key, header, 0, position, topic=str(path))

    def _continued(self, file: BinaryIO, name: str, after: Position, header_bytes: int) -> Fingerprint:
        """Move to ``after``, and on to the start of a line.  Raises DataError when the text before has changed.

        A line without end was returned as it was at the end of the file: what was added to it since is skipped.
        """
        seen = fingerprint_up_to(file, after.offset)
        difference = seen.difference(after)
        if difference:
            raise changed_input(name, after, difference, self._name)
        while seen.tail and not seen.tail.endswith(b"\n"):
            added = file.readline(_MAX_RECORD_BYTES)
            if not added:
                break
            if added.strip() and seen.length >= header_bytes:
                log.warning(
                    "%s: the last line, up to byte %d, was read incomplete; what was added to it since is skipped",
                    name, after.offset,
                )  # fmt: skip
            seen.add(added)
        return seen

    def _read_parquet(self, path: Path, earlier: str, after: Position | None) -> Iterator[RawMessage]:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as error:
            raise ConfigError(f"{path}: Parquet needs pyarrow: pip install 'stream-gru[parquet]'") from error
        name, check = stored_name(path), _parquet_check(path)
        if after is not None and after.fingerprint and after.fingerprint.split(" ")[:2] != check.split(" "):
            raise changed_input(name, after, "its size, beginning or footer differs", self._name, "row")
        offset, done = after.offset if after is not None else 0, 0
        try:
            with parquet.ParquetFile(path) as file:
                if after is not None and offset == file.metadata.num_rows:
                    return
                for batch in file.iter_batches(batch_size=self._block_bytes // _BYTES_PER_ROW):
                    done += batch.num_rows
                    if done > offset:
                        rows = batch.slice(max(0, offset - done + batch.num_rows))
                        position = Position(name, done, check + earlier)
                        yield RawMessage(_stream(batch.schema, rows), stem(path), position=position, topic=str(path))
                if not done:
                    position = Position(name, 0, check + earlier)
                    yield RawMessage(_stream(file.schema_arrow), stem(path), position=position, topic=str(path))
        except pa.ArrowException as error:
            raise DataError(f"{path}: not a Parquet file: {error}") from error


def _whole_lines(file: BinaryIO, block_bytes: int, seen: Fingerprint) -> Iterator[bytes]:
    """Whole lines in blocks, then what stands after the last line end; ``seen`` ends where they end.

    Of a line that is longer than a block and than the limit only the beginning and the end are given.
    """
    buffer = bytearray(block_bytes)
    view, held, line = memoryview(buffer), 0, b""
    while count := file.readinto(view[held:]):  # type: ignore[attr-defined]
        end = held + count
        cut = buffer.rfind(b"\n", held, end) + 1
        if cut:
            lines = bytes(view[:cut])
            seen.add(lines)
            yield line + lines
            line, held = b"", end - cut
            buffer[:held] = buffer[cut:end]
        elif end == block_bytes:
            seen.add(bytes(buffer))
            line, held = _bounded(line + buffer), 0
        else:
            held = end
    rest = bytes(view[:held])
    seen.add(rest)
    if line or rest:
        yield line + rest


def _parquet_check(path: Path) -> str:
    """Two parts: the size of a file; its beginning and its end, where Parquet says what is where."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(_FOOTER_BYTES)
        file.seek(max(0, size - _FOOTER_BYTES))
        return f"{size} {digest(head + file.read(_FOOTER_BYTES))}"


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
