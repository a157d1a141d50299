"""A file of rows, compressed when its name ends ``.gz``, rotated when it grows too large or too old."""

from __future__ import annotations

import gzip
import logging
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
    delete_oldest,
    recover,
    repair,
    rotate,
    rotated_name,
    tail_of,
)
from stream_gru.core.checks import Check
from stream_gru.core.commit_records import FileOffset, FlushResult, SinkCheckpoint
from stream_gru.core.errors import ConfigError, SinkUnavailable
from stream_gru.core.types import PredictionBatch, SinkHealth

log = logging.getLogger(__name__)

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
        """The form of a row follows from the name."""
        if not _FILE_NAME.fullmatch(self.path):
            yield Problem(("path",), _EXPECTED_NAME, shown(self.path))

    def build(self, context: SinkContext) -> FileSink:
        """Return the sink."""
        return file_sink(
            Path(self.path),
            append=True,
            rotate_bytes=self.rotate_bytes,
            rotate_s=self.rotate_s,
            max_files=self.max_files,
        )

    def checks(self) -> Iterator[Check]:
        """Whether its folder is writable and has free space."""
        yield check_folder(Path(self.path).parent)

    def excludes(self, old: SinkTable) -> bool:
        """A file has one writer."""
        return isinstance(old, FileSinkConfig) and old.unique == self.unique


def file_sink(
    path: Path, append: bool, *, rotate_bytes: int = 0, rotate_s: float = 0.0, max_files: int = 10
) -> FileSink:
    """A file; the form of a row follows from its name, see `FileSinkConfig.path`.  Raises ConfigError."""
    found = _FILE_NAME.fullmatch(str(path))
    if found is None:
        raise ConfigError(f"{path}: expected {_EXPECTED_NAME}")
    encoder = ENCODERS[_SUFFIXES[found[1]]]()
    return FileSink(path, encoder, append=append, rotate_bytes=rotate_bytes, rotate_s=rotate_s, max_files=max_files)


class FileSink:
    """Writes rows to ``path``: appends to the file with ``append``, else replaces it.

    With a store the file is cut back at the start to what was committed (`file_recovery`), so that each row is in it
    once.  Rows before the first commit after `open` cannot be cut back: commit once before.  Without a store, an
    incomplete row of a killed process is cut off, and an unfinished compressed file is rotated, as nothing after its
    end could be read.

    A flush that finds the file larger than ``rotate_bytes``, or opened ``rotate_s`` ago (0: never), ends it and stores
    its new name; `committed` renames it and starts a new one.  So the rows of one commit stay together.  The newest
    ``max_files`` rotated files are kept.  Of a compressed file the compressed size counts.  ``clock``: monotonic
    seconds; ``wall``: seconds since 1970.

    Decision: a compressed file is readable up to every flush, and a kill costs a new gzip member but no row: a commit
    stores the checksum with which the next process ends the open member.
    """

    def __init__(
        self,
        path: Path,
        encoder: Encoder,
        *,
        append: bool,
        rotate_bytes: int = 0,
        rotate_s: float = 0.0,
        max_files: int = 10,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._encoder, self._append = path, encoder, append
        self._rotate_bytes, self._rotate_s, self._max_files = rotate_bytes, rotate_s, max_files
        self._clock, self._wall = clock, wall
        self._absolute = str(path.absolute())
        self._compressed = path.name.endswith(".gz")
        self._file: IO[bytes] | None = None
        self._member: GzipMember | None = None
        self._durable = FileOffset(self._absolute, 0)
        self._rotated: Path | None = None
        self._unsynced = self._new = self._has_rows = self._checked = self._left = False
        self._opened_s = 0.0

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Create or continue the file.  Raises SinkUnavailable, StateError when it is shorter than was committed."""
        committed = checkpoint.file_offset if checkpoint is not None and self._append else None
        with self._disk_errors():
            if committed is not None and self.continues(committed):
                size = recover(self._path, committed, self._max_files)
                self._begin(committed if size else FileOffset(self._absolute, 0))
            else:
                size = repair(self._path, self._wall()) if self._append else 0
                self._begin(FileOffset(self._absolute, size))
                self._unsynced = size > 0

    def continues(self, offset: FileOffset) -> bool:
        """Whether this is the file of the offset."""
        return self._append and offset.path == self._absolute

    def _begin(self, durable: FileOffset) -> None:
        """Open the file, which is durable up to there."""
        self._file = self._path.open("ab" if self._append else "wb")
        self._durable, self._member, self._rotated = durable, None, None
        self._has_rows = durable.offset > 0
        self._checked = self._unsynced = self._left = False
        self._new = not self._has_rows
        self._opened_s = self._clock()

    def ready(self) -> bool:
        """A file is always ready."""
        return True

    def write(self, batch: PredictionBatch) -> None:
        """Write all rows.  Raises SinkUnavailable."""
        if self._file is None:
            raise SinkUnavailable(f"{self._path}: not open")
        if not len(batch):
            return
        with self._disk_errors():
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
        """Raise SinkUnavailable when the rows in the file have other columns."""
        if not header:
            return
        opener = gzip.open if self._compressed else open
        with opener(self._path, "rb") as file:
            found = file.readline()
        if found != header:
            raise SinkUnavailable(f"{self._path}: expected the columns of this model in the first line; set a new path")

    def flush(self) -> FlushResult:
        """Make what was written durable, and return up to where the file is durable.

        Raises SinkUnavailable.
        """
        if self._file is None:
            return FlushResult()
        with self._disk_errors():
            if self._unsynced and self._member is not None:
                self._file.write(self._member.sync())
            self._file.flush()
            if self._rotated is None and not self._is_in_place(self._file):
                self._leave(self._file)
            elif self._rotated is None and self._is_due(_size(self._file)):
                self._rotated, self._unsynced = rotated_name(self._path, self._wall()), True
            if self._unsynced:
                self._durable = self._sync(self._file)
                self._unsynced = False
        return FlushResult(file_offset=self._durable)

    def _is_in_place(self, file: IO[bytes]) -> bool:
        """Whether the open file still has its name."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False

    def _leave(self, file: IO[bytes]) -> None:
        """End a file that was moved or deleted; `committed` begins a new one, behind what is there."""
        sync_folder(self._path.parent)  # an error if it is gone as well
        log.warning("%s: moved or deleted while in use; the next rows go to a new file", self._path)
        self._end_member(file)
        file.flush()
        os.fsync(file.fileno())
        size = self._path.stat().st_size if self._path.exists() else 0
        self._durable, self._left, self._unsynced = FileOffset(self._absolute, size), True, False

    def _is_due(self, size: int) -> bool:
        """Whether to rotate the file; never one without rows."""
        if not self._has_rows:
            return False
        if self._rotate_bytes and size > self._rotate_bytes:
            return True
        return self._rotate_s > 0 and self._clock() - self._opened_s >= self._rotate_s

    def _sync(self, file: IO[bytes]) -> FileOffset:
        """Sync the file to the disk; return up to where it is durable."""
        if self._rotated is not None:
            self._end_member(file)
        file.flush()
        os.fsync(file.fileno())
        if self._new:
            sync_folder(self._path.parent)
            self._new = False
        offset = _size(file)
        if self._rotated is not None:
            detail = Detail(rotated=self._rotated.name, tail=tail_of(self._path, offset))
        elif self._member is not None:
            detail = Detail(crc32=self._member.crc32, size=self._member.size)
        else:
            detail = Detail()
        return FileOffset(self._absolute, offset, detail.text())

    def _end_member(self, file: IO[bytes]) -> None:
        if self._member is not None:
            file.write(self._member.finish())
            self._member = None

    def committed(self) -> None:
        """Start a new file if the commit says so, after it rotated the old one.  Raises SinkUnavailable."""
        if self._file is None or self._unsynced or not (self._left or self._rotated):
            return
        with self._disk_errors():
            file, self._file = self._file, None
            file.close()
            if self._rotated is None:
                self._begin(self._durable)
                return
            rotate(self._path, self._rotated)
            delete_oldest(self._path, self._max_files)
            self._begin(FileOffset(self._absolute, 0))

    def close(self) -> None:
        """Write and close the file.  Raises SinkUnavailable.

        What was not committed, also the end of a compressed file, is cut off at the next start and written again.
        """
        if self._file is None:
            return
        with self._disk_errors():
            file, self._file = self._file, None
            with file:
                if self._compressed and not self._has_rows:
                    self._member = GzipMember()  # an empty file is no gzip file
                self._end_member(file)

    def health(self) -> SinkHealth:
        """An open file is connected."""
        return SinkHealth(connected=self._file is not None)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Raise SinkUnavailable in place of OSError."""
        try:
            yield
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: cannot be written: {error.strerror}") from error


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size
