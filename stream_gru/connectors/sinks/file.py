"""A file of rows, compressed when its name ends ``.gz``, put aside when it grows too large or too old."""

from __future__ import annotations

import gzip
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from posixpath import normpath
from typing import IO, Annotated

from msgspec import Meta

from stream_gru.config.connector import SinkContext, SinkTable, Unique
from stream_gru.config.field_types import NonNegative, NonNegativeInt, PositiveInt
from stream_gru.config.problems import Problem, shown
from stream_gru.connectors.folders import check_folder, sync_folder
from stream_gru.connectors.sinks.encoders import ENCODERS, Encoder, encode_once
from stream_gru.connectors.sinks.file_recovery import (
    Detail,
    GzipMember,
    aside_name,
    keep_newest,
    put_aside,
    recover,
    repair,
    tail_of,
)
from stream_gru.core.checks import Check
from stream_gru.core.commit_records import FileOffset, FlushResult, SinkCheckpoint
from stream_gru.core.errors import ConfigError, SinkUnavailable
from stream_gru.core.types import PredictionBatch, SinkHealth

_SUFFIXES = {"jsonl": "jsonl", "csv": "csv", "lp": "line_protocol"}
_FILE_NAME = re.compile(r".*[^/]\.(jsonl|csv|lp)(\.gz)?", re.DOTALL)
_EXPECTED_NAME = "a name that ends in .jsonl, .csv or .lp, perhaps with .gz after it"


class FileSinkConfig(SinkTable, frozen=True, kw_only=True, tag="file"):
    """A file."""

    path: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=4096,
            description="Name that ends in .jsonl, .csv or .lp (line protocol); with .gz after it the file is "
            "compressed.",
            examples=["predictions.jsonl.gz"],
        ),
    ]
    rotate_bytes: Annotated[
        NonNegativeInt,
        Meta(description="Size in bytes at which the file is renamed, with the time in its name; 0: never."),
    ] = 0
    rotate_s: Annotated[NonNegative, Meta(description="Age in seconds at which it is renamed; 0: never.")] = 0.0
    max_files: Annotated[PositiveInt, Meta(description="Renamed files that are kept.")] = 10

    @property
    def path_keys(self) -> Sequence[str]:
        """The file."""
        return ("path",)

    @property
    def unique(self) -> Unique:
        """A file has one writer."""
        return Unique("path", normpath(self.path))

    @property
    def fixed_columns(self) -> bool:
        """A table has one header."""
        return ".csv" in Path(self.path).suffixes

    def problems(self) -> Iterator[Problem]:
        """The name tells the form of a row."""
        if not _FILE_NAME.fullmatch(self.path):
            yield Problem(("path",), _EXPECTED_NAME, shown(self.path))

    def build(self, context: SinkContext) -> FileSink:
        """Return the sink."""
        return file_sink(
            Path(self.path),
            append=True,
            rotate_bytes=self.rotate_bytes,
            rotate_s=self.rotate_s,
            keep=self.max_files,
        )

    def checks(self) -> Iterator[Check]:
        """Whether its folder is writable and has free space."""
        yield check_folder(Path(self.path).parent)

    def excludes(self, old: SinkTable) -> bool:
        """A file has one writer."""
        return isinstance(old, FileSinkConfig) and old.unique == self.unique


def file_sink(path: Path, append: bool, *, rotate_bytes: int = 0, rotate_s: float = 0.0, keep: int = 10) -> FileSink:
    """A file whose name tells the form of a row, see `FileSinkConfig.path`.  Raises ConfigError."""
    found = _FILE_NAME.fullmatch(str(path))
    if found is None:
        raise ConfigError(f"{path}: expected {_EXPECTED_NAME}")
    encoder = ENCODERS[_SUFFIXES[found[1]]]()
    return FileSink(path, encoder, append=append, rotate_bytes=rotate_bytes, rotate_s=rotate_s, keep=keep)


class FileSink:
    """Writes rows to ``path``: after what is there with ``append``, else in place of it.

    With a store the file is cut back to its mark at the start (see `file_recovery`), so that each row is in it
    once.  What is written before the first commit after `open` has no mark to be cut back to: commit once before.
    Without a store, a row that a killed process left half written is cut off, and a compressed file that it left
    unfinished is put aside, as nothing behind its end could be read.

    A flush that finds the file larger than ``rotate_bytes``, or opened ``rotate_s`` ago (0: never), ends it and says in
    its mark under which name, that of the time, it will be put aside; `committed` does that and begins a new one.  So
    the rows of one commit stay together.  Of those put aside the newest ``keep`` stay.  A compressed file counts as
    what has come out of the compressor.  ``clock``: monotonic seconds; ``wall``: seconds since 1970.

    Decision: a compressed file is readable up to every flush, and a kill costs it a new gzip member, no row: its mark
    has the checksum with which the next process ends the member that was under way.
    """

    def __init__(
        self,
        path: Path,
        encoder: Encoder,
        *,
        append: bool,
        rotate_bytes: int = 0,
        rotate_s: float = 0.0,
        keep: int = 10,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._encoder, self._append = path, encoder, append
        self._rotate_bytes, self._rotate_s, self._keep = rotate_bytes, rotate_s, keep
        self._clock, self._wall = clock, wall
        self._place = str(path.absolute())
        self._compressed = path.name.endswith(".gz")
        self._file: IO[bytes] | None = None
        self._member: GzipMember | None = None
        self._mark = FileOffset(self._place, 0)
        self._aside: Path | None = None
        self._unsynced = self._new = self._has_rows = self._checked = False
        self._opened_s = 0.0

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Create the file, or go on with it.

        Raises SinkUnavailable, StateError when less of it is there than was committed.
        """
        mark = checkpoint.file_offset if checkpoint is not None and self._append else None
        with self._telling():
            if mark is not None and mark.path == self._place:
                size = recover(self._path, mark, self._keep)
                self._begin(mark if size else FileOffset(self._place, 0))
            else:
                size = repair(self._path, self._wall()) if self._append else 0
                self._begin(FileOffset(self._place, size))
                self._unsynced = size > 0

    def _begin(self, mark: FileOffset) -> None:
        """Open the file, which is durable up to ``mark``."""
        self._file = self._path.open("ab" if self._append else "wb")
        self._mark, self._member, self._aside = mark, None, None
        self._has_rows = mark.offset > 0
        self._checked = self._unsynced = False
        self._new = not self._has_rows
        self._opened_s = self._clock()

    def ready(self) -> bool:
        """A file takes rows at any time."""
        return True

    def write(self, batch: PredictionBatch) -> None:
        """Write all rows.  Raises SinkUnavailable when the disk refuses them."""
        if self._file is None:
            raise SinkUnavailable(f"{self._path}: not open")
        if not len(batch):
            return
        with self._telling():
            data = encode_once(self._encoder, batch)
            if not self._checked:
                header = self._encoder.header(batch.spec, batch.alarm is not None)
                if self._has_rows:
                    self._check_header(header)
                else:
                    data = header + data
            self._checked = self._has_rows = self._unsynced = True
            if self._compressed:
                self._member = self._member or GzipMember()
                data = self._member.write(data)
            self._file.write(data)

    def _check_header(self, header: bytes) -> None:
        """Refuse to append rows of other columns.  Raises SinkUnavailable."""
        if not header:
            return
        opener = gzip.open if self._compressed else open
        with opener(self._path, "rb") as file:
            found = file.readline()
        if found != header:
            raise SinkUnavailable(
                f"{self._path}: expected the columns of this model in the first line; choose a new file"
            )

    def flush(self) -> FlushResult:
        """Make what was written durable, and say how far that is; the same mark again when nothing was written.

        Raises SinkUnavailable.
        """
        if self._file is None:
            return FlushResult()
        with self._telling():
            if self._unsynced and self._member is not None:
                self._file.write(self._member.sync())
            self._file.flush()
            if self._aside is None and self._is_due(_size(self._file)):
                self._aside, self._unsynced = aside_name(self._path, self._wall()), True
            if self._unsynced:
                self._mark = self._sync(self._file)
                self._unsynced = False
        return FlushResult(file_offset=self._mark)

    def _is_due(self, size: int) -> bool:
        """Whether to put the file aside; never one without rows."""
        if not self._has_rows:
            return False
        if self._rotate_bytes and size > self._rotate_bytes:
            return True
        return self._rotate_s > 0 and self._clock() - self._opened_s >= self._rotate_s

    def _sync(self, file: IO[bytes]) -> FileOffset:
        """Put the file on the disk; return how far it is durable."""
        if self._aside is not None:
            self._end_member(file)
        file.flush()
        os.fsync(file.fileno())
        if self._new:
            sync_folder(self._path.parent)
            self._new = False
        offset = _size(file)
        if self._aside is not None:
            detail = Detail(aside=self._aside.name, tail=tail_of(self._path, offset))
        elif self._member is not None:
            detail = Detail(crc32=self._member.crc32, size=self._member.size)
        else:
            detail = Detail()
        return FileOffset(self._place, offset, detail.text())

    def _end_member(self, file: IO[bytes]) -> None:
        if self._member is not None:
            file.write(self._member.finish())
            self._member = None

    def committed(self) -> None:
        """Put the file aside where the committed mark says so, and begin a new one.  Raises SinkUnavailable."""
        if self._file is None or self._aside is None or self._unsynced:
            return
        with self._telling():
            file, self._file = self._file, None
            file.close()
            put_aside(self._path, self._aside)
            keep_newest(self._path, self._keep)
            self._begin(FileOffset(self._place, 0))

    def close(self) -> None:
        """Write out what is left and end the file.  Raises SinkUnavailable.

        What lies behind the last mark, also the end of a compressed file, is cut off at the next start and comes again.
        """
        if self._file is None:
            return
        with self._telling():
            file, self._file = self._file, None
            with file:
                if self._compressed and not self._has_rows:
                    self._member = GzipMember()  # nothing at all would be no gzip file
                self._end_member(file)

    def health(self) -> SinkHealth:
        """A file that was opened is there."""
        return SinkHealth(connected=self._file is not None)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what the disk says into SinkUnavailable."""
        try:
            yield
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: cannot be written: {error.strerror}") from error


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size
