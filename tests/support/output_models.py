"""Sinks of a process that may be killed: a disk that keeps everything, a wire that forgets nothing it has carried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stream_gru.core.commit_records import FileOffset, FlushResult, OutboxRow, SinkCheckpoint
from stream_gru.core.types import PredictionBatch, ResetReason, SinkHealth
from tests.support.streams import rows_of

Lines = Callable[[PredictionBatch], list[bytes]]


def lines_of(batch: PredictionBatch) -> list[bytes]:
    """Each output as bytes."""
    return [repr(row).encode() for row in rows_of([batch])]


def lines_with_either_reason(batch: PredictionBatch) -> list[bytes]:
    """The same, but a reset that was asked for and one for another model are told alike."""
    asked = batch.reset == ResetReason.MODEL_CHANGED
    return lines_of(replace(batch, reset=np.where(asked, np.uint8(ResetReason.COMMAND), batch.reset)))


class DiskSink:
    """Appends to ``disk``, which outlives it, and cuts it back to what was committed."""

    def __init__(self, disk: list[bytes], lines: Lines = lines_of) -> None:
        self._disk, self._lines = disk, lines

    def open(self, kept: SinkCheckpoint | None) -> None:
        """Cut off what no commit covers."""
        assert kept is not None
        offset = 0 if kept.file_offset is None else kept.file_offset.offset
        assert len(self._disk) >= offset
        del self._disk[offset:]

    def ready(self) -> bool:
        """Always."""
        return True

    def write(self, batch: PredictionBatch) -> None:
        """Append."""
        self._disk += self._lines(batch)

    def flush(self) -> FlushResult:
        """All is on the disk."""
        return FlushResult(file_offset=FileOffset("disk", len(self._disk)))

    def committed(self) -> None:
        """Nothing waits for it."""

    def close(self) -> None:
        """Nothing is open."""

    def health(self) -> SinkHealth:
        """Well."""
        return SinkHealth()


class WireSink:
    """Sends what is committed to ``world``, by number, when it has its `turn`; what has arrived is answered."""

    def __init__(self, world: dict[int, bytes], lines: Lines = lines_of) -> None:
        self._world, self._lines = world, lines
        self._new: list[OutboxRow] = []
        self._flushed: list[OutboxRow] = []
        self.waiting: list[OutboxRow] = []
        self._answered: list[int] = []
        self._last = 0

    def open(self, kept: SinkCheckpoint | None) -> None:
        """Go on with what nobody has confirmed."""
        assert kept is not None
        self.waiting, self._last = list(kept.unacked), kept.last_number

    def ready(self) -> bool:
        """Always."""
        return True

    def write(self, batch: PredictionBatch) -> None:
        """Number each output."""
        for line in self._lines(batch):
            self._last += 1
            self._new.append(OutboxRow("topic", line, f"{self._last}", self._last))

    def flush(self) -> FlushResult:
        """What came, and what was answered."""
        answered, self._answered = self._answered, []
        self._flushed, self._new = self._new, []
        return FlushResult(unacked=self._flushed, acked=answered)

    def committed(self) -> None:
        """It may go out."""
        self.waiting += self._flushed
        self._flushed = []

    def turn(self, most: int) -> None:
        """Some go out; one that has gone out before says the same."""
        for row in self.waiting[:most]:
            assert self._world.setdefault(row.number, row.payload) == row.payload
            self._answered.append(row.number)
        del self.waiting[:most]

    def close(self) -> None:
        """Nothing is open."""

    def health(self) -> SinkHealth:
        """So many wait."""
        return SinkHealth(queued=len(self.waiting))
