"""Sources, decoders and sinks that follow a script, for tests of the loop between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stream_gru.core.commit_records import FlushResult, ProcessedPackets, SinkCheckpoint
from stream_gru.core.errors import EndOfInput
from stream_gru.core.types import Position, PredictionBatch, RawMessage, SampleBatch, SinkHealth, SourceHealth


class ListSource:
    """Gives what is in a list: messages, ``[]`` for quiet, exceptions to raise, or something to call."""

    def __init__(self, items: Sequence[object], failures: Sequence[Exception] = ()) -> None:
        self.items, self.failures = list(items), list(failures)
        self.committed: list[Position] = []
        self.position: Position | None = None
        self.opened = self.closed = 0
        self.on_call: Callable[[str], None] = lambda name: None

    def open(self, position: Position | None) -> None:
        """Fail as often as told."""
        self.on_call("open")
        self.opened += 1
        self.position = position
        if self.failures:
            raise self.failures.pop(0)

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """The next item."""
        if not self.items:
            raise EndOfInput
        item = self.items.pop(0)
        if isinstance(item, Exception):
            raise item
        if callable(item):
            item()
            return []
        return item if isinstance(item, list) else [item]  # type: ignore[list-item]

    def commit(self, position: Position) -> None:
        """Remember it."""
        self.on_call("commit")
        self.committed.append(position)

    def close(self) -> None:
        """Count it."""
        self.closed += 1

    def health(self) -> SourceHealth:
        """Well."""
        return SourceHealth()


class PacketSource(ListSource):
    """A source that is `Redelivering`: it says ``said`` at each commit."""

    def __init__(self, items: Sequence[object] = ()) -> None:
        super().__init__(items)
        self.said = ProcessedPackets()
        self.packets: Mapping[int, bytes] | None = None

    def resume(self, packets: Mapping[int, bytes]) -> None:
        """Remember them."""
        self.on_call("resume")
        self.packets = packets

    def processed_packets(self, position: Position) -> ProcessedPackets:
        """As told."""
        self.on_call("receipts")
        return self.said


class ReadyDecoder:
    """Turns message i into the i-th of the batches it was given."""

    def __init__(self, batches: Sequence[SampleBatch]) -> None:
        self.batches = batches

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """The batch that the message names."""
        return self.batches[int(raw[0].payload)]


class ListSink:
    """Keeps what is written; ``fail`` names a method that raises ``error``; without ``room`` it is not ready.

    ``answer``: what the next `flush` says; ``waiting``: how many outputs nobody has confirmed; ``on_call`` hears of
    each call.
    """

    def __init__(
        self, fail: str = "", error: Exception | None = None, on_write: Callable[[], None] | None = None
    ) -> None:
        self.fail, self.error, self.on_write = fail, error, on_write
        self.written: list[PredictionBatch] = []
        self.calls: list[str] = []
        self.kept: SinkCheckpoint | None = None
        self.room = True
        self.answer = FlushResult()
        self.waiting = 0
        self.on_call: Callable[[str], None] = lambda name: None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.on_call(name)
        if name == self.fail and self.error is not None:
            raise self.error

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Remember what was kept."""
        self.kept = checkpoint
        self._call("open")

    def ready(self) -> bool:
        """As told."""
        self.on_call("ready")
        return self.room

    def write(self, batch: PredictionBatch) -> None:
        """Keep it."""
        self._call("write")
        self.written.append(batch)
        if self.on_write is not None:
            self.on_write()

    def flush(self) -> FlushResult:
        """Say what was set, once."""
        self._call("flush")
        answer, self.answer = self.answer, FlushResult()
        return answer

    def committed(self) -> None:
        """Count it."""
        self._call("committed")

    def close(self) -> None:
        """Count it."""
        self._call("close")

    def health(self) -> SinkHealth:
        """So many wait."""
        return SinkHealth(queued=self.waiting)
