"""Sources, decoders and sinks that follow a script, for tests of the loop between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stream_gru.core.commit_records import FileOffset, FlushResult, ProcessedPackets, SinkCheckpoint
from stream_gru.core.errors import EndOfInput
from stream_gru.core.types import Position, PredictionBatch, RawMessage, SampleBatch, SinkHealth, SourceHealth


class ListSource:
    """Returns the items of a list: messages, ``[]`` for no input, exceptions to raise, or a function to call."""

    def __init__(self, items: Sequence[object], failures: Sequence[Exception] = ()) -> None:
        self.items, self.failures = list(items), list(failures)
        self.committed: list[Position] = []
        self.position: Position | None = None
        self.opened = self.closed = 0
        self.on_call: Callable[[str], None] = lambda name: None

    def open(self, position: Position | None) -> None:
        """Fail the set number of times."""
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
        """Healthy."""
        return SourceHealth()


class PacketSource(ListSource):
    """A source that is `Redelivering`: it returns ``processed`` at each commit."""

    def __init__(self, items: Sequence[object] = ()) -> None:
        super().__init__(items)
        self.processed = ProcessedPackets()
        self.packets: Mapping[int, bytes] | None = None

    def resume(self, packets: Mapping[int, bytes]) -> None:
        """Remember them."""
        self.on_call("resume")
        self.packets = packets

    def processed_packets(self, position: Position) -> ProcessedPackets:
        """Return the set packets."""
        self.on_call("receipts")
        return self.processed


class ReadyDecoder:
    """Turns message i into the i-th of the batches it was given."""

    def __init__(self, batches: Sequence[SampleBatch]) -> None:
        self.batches = batches

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """The batch that the message names."""
        return self.batches[int(raw[0].payload)]


class ListSink:
    """Stores written outputs; ``fail`` names a method that raises ``error``; without ``room`` it is not ready.

    ``answer``: what the next `flush` returns; ``waiting``: how many outputs are unacknowledged; ``on_call`` is called
    with the name of each call.
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
        """Record the stored state."""
        self.kept = checkpoint
        self._call("open")

    def continues(self, offset: FileOffset) -> bool:
        """Every offset is that of its file."""
        return True

    def ready(self) -> bool:
        """Return ``room``."""
        self.on_call("ready")
        return self.room

    def write(self, batch: PredictionBatch) -> None:
        """Store it."""
        self._call("write")
        self.written.append(batch)
        if self.on_write is not None:
            self.on_write()

    def flush(self) -> FlushResult:
        """Return the set answer, once."""
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
        """The number of waiting outputs."""
        return SinkHealth(queued=self.waiting)
