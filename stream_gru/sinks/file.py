"""A file of rows, compressed when its name ends ``.gz``, put aside when it grows too large or too old."""

from __future__ import annotations

import gzip
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from stream_gru.errors import SinkUnavailable
from stream_gru.sinks.rotation import keep_newest, put_aside
from stream_gru.types import OutputSpec, PredictionBatch, SinkHealth

_CHUNK = 65_536


class Encoder(Protocol):
    """The form of a row."""

    def header(self, spec: OutputSpec, alarm: bool = False) -> bytes:
        """What stands before the first row; ``alarm``: rows say whether they are one."""
        ...

    def encode(self, batch: PredictionBatch) -> bytes:
        """All rows of a batch."""
        ...


class FileSink:
    """Writes rows to ``path``: after what is there with ``append``, else in place of it.

    A row that a killed process left half written is cut off before more is appended; a compressed file that it left
    unfinished is put aside, as nothing behind its end could be read.

    A write or flush that leaves the file larger than ``rotate_bytes``, or opened ``rotate_s`` ago (0: never), finishes
    it, puts it aside under the time of that and begins a new one, so that the rows of one batch stay together; of those
    put aside the newest ``keep`` stay.  A compressed file counts as what has come out of the compressor.  A kill in
    between leaves all rows in a file of the old or the new name.  ``clock``: monotonic seconds; ``wall``: seconds since
    1970.
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
        self._compressed = path.name.endswith(".gz")
        self._file: IO[bytes] | gzip.GzipFile | None = None
        self._raw: IO[bytes] | None = None
        self._needs_header = True
        self._checked = False
        self._has_rows = False
        self._opened_s = 0.0
        self._put_aside = 0

    def open(self) -> None:
        """Create or open the file.  Raises SinkUnavailable."""
        with self._telling():
            there = self._append and self._path.is_file()
            self._begin(self._repair() if there else 0)

    def _repair(self) -> int:
        """Make the file ready for more, or put it aside; return how many bytes of rows it has."""
        if not self._compressed:
            return _cut_half_row(self._path)
        size = _uncompressed_size(self._path)
        if size is None:
            put_aside(self._path, self._wall())
        return size or 0

    def _begin(self, size: int) -> None:
        """Open the file, in which ``size`` bytes of rows are."""
        raw = self._path.open("ab" if self._append else "wb")
        self._file = gzip.GzipFile("", "wb", 6, raw, mtime=0) if self._compressed else raw
        self._raw, self._has_rows, self._needs_header = raw, size > 0, size == 0
        self._opened_s = self._clock()

    def write(self, batch: PredictionBatch) -> None:
        """Write all rows.  Raises SinkUnavailable when the disk refuses them."""
        if self._file is None or self._raw is None:
            raise SinkUnavailable(f"{self._path}: not open")
        with self._telling():
            if self._needs_header:
                self._file.write(self._encoder.header(batch.spec, batch.alarm is not None))
            elif not self._checked:
                self._check_header(self._encoder.header(batch.spec, batch.alarm is not None))
            self._needs_header, self._checked = False, True
            self._has_rows = self._has_rows or len(batch) > 0
            self._file.write(self._encoder.encode(batch))
            if self._is_due(self._raw.tell()):
                self._rotate()

    def _check_header(self, header: bytes) -> None:
        """Refuse to append rows of other columns.  Raises SinkUnavailable."""
        if not header or not self._append:
            return
        opener = gzip.open if self._compressed else open
        with opener(self._path, "rb") as file:
            found = file.readline()
        if found != header:
            raise SinkUnavailable(
                f"{self._path}: expected the columns of this model in the first line; choose a new file"
            )

    def flush(self) -> int:
        """Make what was written durable; return how many bytes that is, with those put aside since `open`.

        Raises SinkUnavailable.
        """
        if self._file is None or self._raw is None:
            return self._put_aside
        with self._telling():
            self._file.flush()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            size = self._raw.tell()
            if self._is_due(size):
                self._rotate()
                size = 0
        return self._put_aside + size

    def _is_due(self, size: int) -> bool:
        """Whether to put the file aside; never one without rows."""
        if not self._has_rows:
            return False
        if self._rotate_bytes and size > self._rotate_bytes:
            return True
        return self._rotate_s > 0 and self._clock() - self._opened_s >= self._rotate_s

    def _rotate(self) -> None:
        """Finish the file, put it aside and begin a new one."""
        self._put_aside += self._finish()
        put_aside(self._path, self._wall())
        keep_newest(self._path, self._keep)
        self._begin(0)

    def _finish(self) -> int:
        """Write the end of the file, make it durable and close it; return its size."""
        assert self._file is not None and self._raw is not None  # noqa: S101, PT018 - the callers have looked
        file, raw, self._file, self._raw = self._file, self._raw, None, None
        with raw:
            if file is not raw:
                file.close()  # the end of the compressed data
            raw.flush()
            if self._rotate_bytes or self._rotate_s:
                os.fsync(raw.fileno())
            return raw.tell()

    def close(self) -> None:
        """Finish the file.  Raises SinkUnavailable."""
        if self._file is not None:
            with self._telling():
                self._finish()

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


def _cut_half_row(path: Path) -> int:
    """Truncate a file behind its last line end; return its length.  Raises OSError."""
    with path.open("rb+") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _CHUNK)
            file.seek(start)
            cut = file.read(end - start).rfind(b"\n")
            if cut >= 0:
                end = start + cut + 1
                break
            end = start
        if end < size:
            file.truncate(end)
        return end


def _uncompressed_size(path: Path) -> int | None:
    """How much is in a compressed file; None when it does not end as it should.  Raises OSError."""
    size = 0
    try:
        with gzip.open(path, "rb") as file:
            while part := file.read(_CHUNK):
                size += len(part)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return None
    return size
