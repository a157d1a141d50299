"""A file sink with its store and a switch: written, committed, killed, restarted."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from stream_gru.connectors.sinks.encoders import CsvEncoder, Encoder, JsonEncoder
from stream_gru.connectors.sinks.file import FileSink
from stream_gru.connectors.sinks.file_recovery import rotated_files
from stream_gru.core.commit_records import FileOffset, SinkCheckpoint
from tests.support.batches import batch, part
from tests.support.pipelines import toy_pipeline

OUTPUTS = toy_pipeline().process(batch(["p"] * 60, list(range(60))))
FILE_NAMES = ("out.jsonl", "out.csv", "out.jsonl.gz", "out.csv.gz")
NOON = 1_795_600_800.0  # 2026-11-25T10:00:00Z


class Times:
    """Clocks that a test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        """Monotonic seconds."""
        return self.now_s

    def wall(self) -> float:
        """Seconds since 1970."""
        return NOON + self.now_s


def encoder_of(path: Path) -> Encoder:
    """The form that a file name gives."""
    return CsvEncoder() if ".csv" in path.name else JsonEncoder()


def file_content(path: Path) -> bytes:
    """What is in a file, uncompressed."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.name.endswith(".gz") else data


def folder_content(folder: Path) -> dict[str, bytes]:
    """What is in each file of a folder, by name."""
    return {path.name: file_content(path) for path in folder.iterdir()}


def rows_in(path: Path) -> bytes:
    """All rows of a file and of the files rotated from it, in order; each file starts with the header."""
    header = encoder_of(path).header(OUTPUTS.spec)
    texts = [file_content(file) for file in [*rotated_files(path), path]]
    assert all(text.startswith(header) for text in texts if text)
    return b"".join(text.removeprefix(header) for text in texts)


@dataclass
class SinkRun:
    """A sink of ``path`` and its entry in a store: a checkpoint, and how many rows it covers."""

    path: Path
    rotate_bytes: int = 0
    rotate_s: float = 0
    max_files: int = 10**6
    times: Times = field(default_factory=Times)
    stored: FileOffset | None = None
    stored_rows: int = 0
    written: int = 0
    between: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Open a new sink at the last commit, and commit at once."""
        self.sink = FileSink(
            self.path,
            encoder_of(self.path),
            append=True,
            rotate_bytes=self.rotate_bytes,
            rotate_s=self.rotate_s,
            max_files=self.max_files,
            clock=self.times.clock,
            wall=self.times.wall,
        )
        self.written = self.stored_rows
        self.sink.open(SinkCheckpoint(self.stored))
        self.commit()

    def write(self, rows: int) -> None:
        """Write the next rows."""
        self.sink.write(part(OUTPUTS, slice(self.written, self.written + rows)))
        self.written = min(self.written + rows, len(OUTPUTS))

    def flush(self) -> FileOffset | None:
        """The first third of a commit."""
        return self.sink.flush().file_offset

    def store(self, mark: FileOffset | None) -> None:
        """The second third."""
        self.stored, self.stored_rows = mark, self.written

    def commit(self) -> None:
        """A whole commit, with a call ``between`` its parts."""
        mark = self.flush()
        self.between()
        self.store(mark)
        self.between()
        self.sink.committed()

    def kill(self, lost: bool = False, left: bytes = b"") -> None:
        """Drop the sink: data not yet passed to a system call is ``lost`` or just written; ``left`` bytes of a row were
        written.
        """
        file = self.sink._file
        if file is None:
            return
        size = self.path.stat().st_size
        file.close()
        if lost:
            os.truncate(self.path, size)
        with self.path.open("ab") as end:
            end.write(left)

    def expected(self, rows: int) -> bytes:
        """The first rows."""
        return encoder_of(self.path).encode(part(OUTPUTS, slice(0, rows)))
