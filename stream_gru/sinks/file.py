"""A file of rows, compressed when its name ends ``.gz``."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import IO, Protocol

from stream_gru.errors import SinkUnavailable
from stream_gru.types import OutputSpec, PredictionBatch


class Encoder(Protocol):
    """The form of a row."""

    def header(self, spec: OutputSpec) -> bytes:
        """What stands before the first row."""
        ...

    def encode(self, batch: PredictionBatch) -> bytes:
        """All rows of a batch."""
        ...


class FileSink:
    """Writes rows to ``path``: after what is there with ``append``, else in place of it."""

    def __init__(self, path: Path, encoder: Encoder, *, append: bool) -> None:
        self._path, self._encoder, self._append = path, encoder, append
        self._file: IO[bytes] | gzip.GzipFile | None = None
        self._raw: IO[bytes] | None = None
        self._needs_header = True

    def open(self) -> None:
        """Create or open the file.  Raises SinkUnavailable."""
        try:
            self._raw = self._path.open("ab" if self._append else "wb")
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: cannot be written: {error.strerror}") from error
        self._needs_header = self._raw.tell() == 0
        compressed = self._path.name.endswith(".gz")
        self._file = gzip.GzipFile("", "wb", 6, self._raw, mtime=0) if compressed else self._raw

    def write(self, batch: PredictionBatch) -> None:
        """Write all rows.  Raises SinkUnavailable when the disk refuses them."""
        if self._file is None:
            raise SinkUnavailable(f"{self._path}: not open")
        try:
            if self._needs_header:
                self._file.write(self._encoder.header(batch.spec))
                self._needs_header = False
            self._file.write(self._encoder.encode(batch))
        except OSError as error:
            raise SinkUnavailable(f"{self._path}: cannot be written: {error.strerror}") from error

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
