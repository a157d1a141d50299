"""A file of rows, compressed when its name ends ``.gz``."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import IO, Protocol

from stream_gru.errors import SinkUnavailable
from stream_gru.types import OutputSpec, PredictionBatch, SinkHealth

_CHUNK = 65_536


class Encoder(Protocol):
    """The form of a row."""

    def header(self, spec: OutputSpec) -> bytes:
        """What stands before the first row."""
        ...

    def encode(self, batch: PredictionBatch) -> bytes:
        """All rows of a batch."""
        ...


class FileSink:
    """Writes rows to ``path``: after what is there with ``append``, else in place of it.

    A row that a killed process left half written is cut off before more is appended.
    """

    def __init__(self, path: Path, encoder: Encoder, *, append: bool) -> None:
        self._path, self._encoder, self._append = path, encoder, append
        self._file: IO[bytes] | gzip.GzipFile | None = None
        self._raw: IO[bytes] | None = None
        self._needs_header = True
        self._checked = False

    def open(self) -> None:
        """Create or open the file.  Raises SinkUnavailable."""
        compressed = self._path.name.endswith(".gz")
        try:
            self._raw = self._path.open("ab" if self._append else "wb")
            if self._append and not compressed:
                self._cut_half_row()
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: cannot be written: {error.strerror}") from error
        self._needs_header = self._raw.tell() == 0
        self._file = gzip.GzipFile("", "wb", 6, self._raw, mtime=0) if compressed else self._raw

    def write(self, batch: PredictionBatch) -> None:
        """Write all rows.  Raises SinkUnavailable when the disk refuses them."""
        if self._file is None:
            raise SinkUnavailable(f"{self._path}: not open")
        try:
            if self._needs_header:
                self._file.write(self._encoder.header(batch.spec))
            elif not self._checked:
                self._check_header(self._encoder.header(batch.spec))
            self._needs_header, self._checked = False, True
            self._file.write(self._encoder.encode(batch))
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: cannot be written: {error.strerror}") from error

    def _cut_half_row(self) -> None:
        """Truncate the file behind its last line end."""
        with self._path.open("rb+") as file:
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

    def _check_header(self, header: bytes) -> None:
        """Refuse to append rows of other columns.  Raises SinkUnavailable."""
        if not header or not self._append:
            return
        opener = gzip.open if self._path.name.endswith(".gz") else open
        with opener(self._path, "rb") as file:
            found = file.readline()
        if found != header:
            raise SinkUnavailable(
                f"{self._path}: expected the columns of this model in the first line; choose a new file"
            )

    def flush(self) -> int:
        """Make what was written durable; return the file's length in bytes.  Raises SinkUnavailable."""
        if self._file is None or self._raw is None:
            return 0
        try:
            self._file.flush()
            self._raw.flush()
            os.fsync(self._raw.fileno())
            return self._raw.tell()
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Finish the file.  Raises SinkUnavailable."""
        if self._file is None or self._raw is None:
            return
        file, raw, self._file, self._raw = self._file, self._raw, None, None
        try:
            with raw:
                file.close()
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: cannot be written: {error.strerror}") from error

    def health(self) -> SinkHealth:
        """A file that was opened is there."""
        return SinkHealth(connected=self._file is not None)
