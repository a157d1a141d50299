"""The environment of a killed daemon, without a network: broker, disk, wire, and a pipeline that is never killed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from stream_gru.connectors.mqtt.ack_tracker import AckTracker
from stream_gru.core.commit_records import FileOffset, FlushResult, OutboxRow, ProcessedPackets, SinkCheckpoint
from stream_gru.core.types import (
    NS_PER_S,
    Position,
    PredictionBatch,
    RawMessage,
    ResetReason,
    SampleBatch,
    SinkHealth,
    SourceHealth,
)
from stream_gru.model.bundle import Bundle
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.runtime.checkpoint.state_export import StreamExport
from stream_gru.runtime.ingest.device_counters import GapCounter
from tests.support.batches import START_NS, rows_of
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated, toy_pipeline

WINDOW = 5
SOURCE = "b"


@dataclass
class BrokerPacket:
    """A message in flight; ``sent`` before, so that the next delivery is a repetition."""

    mid: int
    number: int
    payload: bytes
    sent: bool = False


class BrokerModel:
    """Stores messages for one client in a session; identifiers are reused soon.

    ``acknowledged`` is called with the number of each message that the client has acknowledged.
    """

    def __init__(self, acknowledged: Callable[[int], None]) -> None:
        self._acknowledged = acknowledged
        self.published = 0
        self.lost: set[int] = set()
        self.backlog: list[tuple[int, bytes]] = []
        self.inflight: list[BrokerPacket] = []
        self.wire: list[BrokerPacket] = []
        self._on_wire: list[BrokerPacket] = []
        self._mid = 0

    def publish(self, payload: bytes) -> int:
        """Publish a message for the client; return its number."""
        self.published += 1
        self.backlog.append((self.published, payload))
        self._send()
        return self.published

    def connect(self) -> None:
        """A new connection: messages in flight are resent."""
        self.wire, self._on_wire = [], []
        self._send()

    def lose_session(self) -> None:
        """Discard undelivered messages and restart the identifiers."""
        self.lost |= {*(packet.number for packet in self.inflight), *(number for number, _ in self.backlog)}
        self.backlog, self.inflight = [], []
        self._mid = 0
        self.connect()

    def acknowledge(self, mid: int) -> None:
        """The client acknowledges a packet, which must be one that it was sent."""
        packet = next(one for one in self.inflight if one.mid == mid)
        assert packet in self._on_wire
        assert packet not in self.wire
        self._acknowledged(packet.number)
        self.inflight.remove(packet)
        self._send()

    def _send(self) -> None:
        while self.backlog and len(self.inflight) < WINDOW:
            self._mid = self._mid % (WINDOW + 2) + 1
            while self._mid in {packet.mid for packet in self.inflight}:
                self._mid = self._mid % (WINDOW + 2) + 1
            self.inflight.append(BrokerPacket(self._mid, *self.backlog.pop(0)))
        for packet in self.inflight:
            if packet not in self._on_wire:
                self._on_wire.append(packet)
                self.wire.append(packet)


class BrokerSource:
    """As `connectors.sources.mqtt` with a real broker: a tracker, a queue; acknowledgements are sent at `turn`."""

    def __init__(self, broker: BrokerModel) -> None:
        self._broker = broker
        self._packets: Mapping[int, bytes] = {}
        self._queue: list[RawMessage] = []
        self._acks = AckTracker()

    def resume(self, packets: Mapping[int, bytes]) -> None:
        """Packets that earlier processes had."""
        self._packets = packets

    def open(self, position: Position | None) -> None:
        """Continue the numbers, and connect with the existing session."""
        self._acks = AckTracker(0 if position is None else position.offset, self._packets, max_done=4 * WINDOW)
        self.connect()

    def connect(self, *, session_present: bool = True) -> None:
        """A new connection."""
        if session_present:
            self._broker.connect()
        else:
            self._broker.lose_session()
        self._acks.connected(session_present)

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """The messages that have arrived."""
        wire, self._broker.wire = self._broker.wire, []
        for packet in wire:
            number = self._acks.on_message(packet.mid, packet.payload, packet.sent)
            packet.sent = True
            if number is not None:
                self._queue.append(RawMessage(packet.payload, position=Position(SOURCE, number), source=SOURCE))
        taken, self._queue = self._queue[:limit], self._queue[limit:]
        return taken

    def processed_packets(self, position: Position) -> ProcessedPackets:
        """As the tracker returns it."""
        return self._acks.processed_packets(position.offset)

    def commit(self, position: Position) -> None:
        """The tracker notes it; nothing is acknowledged before `turn`."""
        self._acks.processed(position.offset)

    def turn(self) -> None:
        """Send the acknowledgements."""
        for mid in self._acks.pending_acks():
            self._broker.acknowledge(mid)

    def close(self) -> None:
        """Nothing is open."""

    def health(self) -> SourceHealth:
        """Healthy."""
        return SourceHealth()


Lines = Callable[[PredictionBatch], list[bytes]]


def output_lines(batch: PredictionBatch) -> list[bytes]:
    """Each output as bytes."""
    return [repr(row).encode() for row in rows_of([batch])]


def lines_with_either_reason(batch: PredictionBatch) -> list[bytes]:
    """The same, but a requested reset and one for another model are equal."""
    asked = batch.reset == ResetReason.MODEL_CHANGED
    return output_lines(replace(batch, reset=np.where(asked, np.uint8(ResetReason.COMMAND), batch.reset)))


class DiskSink:
    """Appends to ``disk``, which survives it, and truncates it to the committed part."""

    def __init__(self, disk: list[bytes], lines: Lines = output_lines) -> None:
        self._disk, self._lines = disk, lines

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Truncate the part that no commit covers."""
        assert checkpoint is not None
        offset = 0 if checkpoint.file_offset is None else checkpoint.file_offset.offset
        assert len(self._disk) >= offset
        del self._disk[offset:]

    def continues(self, offset: FileOffset) -> bool:
        """There is only one file."""
        return True

    def ready(self) -> bool:
        """Always."""
        return True

    def write(self, batch: PredictionBatch) -> None:
        """Append."""
        self._disk += self._lines(batch)

    def flush(self) -> FlushResult:
        """Everything is on the disk."""
        return FlushResult(file_offset=FileOffset("disk", len(self._disk)))

    def committed(self) -> None:
        """Nothing waits for a commit."""

    def close(self) -> None:
        """Nothing is open."""

    def health(self) -> SinkHealth:
        """Healthy."""
        return SinkHealth()


class WireSink:
    """Sends committed outputs to ``world``, by number, at its `turn`; arrived ones are acknowledged."""

    def __init__(self, world: dict[int, bytes], lines: Lines = output_lines) -> None:
        self._world, self._lines = world, lines
        self._new: list[OutboxRow] = []
        self._flushed: list[OutboxRow] = []
        self.waiting: list[OutboxRow] = []
        self._answered: list[int] = []
        self._last = 0

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Resend unacknowledged outputs."""
        assert checkpoint is not None
        self.waiting, self._last = list(checkpoint.unacked), checkpoint.last_number

    def ready(self) -> bool:
        """Always."""
        return True

    def write(self, batch: PredictionBatch) -> None:
        """Number each output."""
        for line in self._lines(batch):
            self._last += 1
            self._new.append(OutboxRow("topic", line, f"{self._last}", self._last))

    def flush(self) -> FlushResult:
        """New outputs and acknowledged ones."""
        answered, self._answered = self._answered, []
        self._flushed, self._new = self._new, []
        return FlushResult(unacked=self._flushed, acked=answered)

    def committed(self) -> None:
        """They may be sent."""
        self.waiting += self._flushed
        self._flushed = []

    def turn(self, most: int) -> None:
        """Send some; one that was sent before must be identical."""
        for row in self.waiting[:most]:
            assert self._world.setdefault(row.number, row.payload) == row.payload
            self._answered.append(row.number)
        del self.waiting[:most]

    def close(self) -> None:
        """Nothing is open."""

    def health(self) -> SinkHealth:
        """The number of waiting outputs."""
        return SinkHealth(queued=len(self.waiting))


UNBOUNDED = 2**31

Sample = tuple[str, int, float]
"""Stream, seconds, value; its number is that of its second."""


@cache
def small_bundle(seed: int) -> Bundle:
    """A small model; another one for another seed."""
    return calibrated(make_bundle(channels=1, labels=0, targets=1, horizon=2, units=(2,), warm_up=1, seed=seed))


def arrival_batch(samples: Sequence[Sample]) -> SampleBatch:
    """Samples of one channel in the order of arrival."""
    names = tuple(dict.fromkeys(name for name, _, _ in samples))
    seconds = np.array([second for _, second, _ in samples], np.int64)
    return SampleBatch(
        stream_names=names,
        stream_index=np.array([names.index(name) for name, _, _ in samples], np.int32),
        time_ns=START_NS + seconds * NS_PER_S,
        values=np.array([value for _, _, value in samples], np.float32).reshape(-1, 1),
        device_seq=seconds,
    )


class ReferenceDaemon:
    """The committed messages, processed by a pipeline that keeps all streams in memory and is never killed."""

    def __init__(self, seed: int, max_streams: int, max_stored: int, lines: Lines) -> None:
        self._lines = lines
        self.pipeline = toy_pipeline(small_bundle(seed), max_streams=max_streams)
        self.watch = GapCounter(UNBOUNDED)
        self.outputs: list[bytes] = []
        self.messages: list[int] = []
        self._max_stored, self._names = max_stored, set[str]()

    def message(self, number: int, samples: Sequence[Sample]) -> None:
        """Process a message; streams beyond those that may be stored are left out."""
        self.messages.append(number)
        for name in dict.fromkeys(name for name, _, _ in samples):
            if len(self._names) < self._max_stored:
                self._names.add(name)
        batch = arrival_batch([one for one in samples if one[0] in self._names])
        self.watch.observe(batch)
        self.outputs += self._lines(self.pipeline.process(batch))

    def reset(self, name: str | None) -> None:
        """A requested reset."""
        self.pipeline.reset(name)

    def forget(self, name: str) -> None:
        """Delete the stream."""
        self.pipeline.table.evict(name)
        self.watch.state.evict(name)
        self._names.remove(name)

    def take_in(self, state: StreamExport) -> None:
        """Replace the stream by this one."""
        name = state.stream
        self.pipeline.restore_stream(name, RowSchema.read(state.row_schema), state.row)
        self.watch.state.evict(name)
        for data in state.components.values():
            self.watch.state.restore(name, data)
        self._names.add(name)

    def swap(self, seed: int) -> None:
        """Replace the model."""
        swap(self.pipeline, seed)


def swap(pipeline: Pipeline, seed: int) -> None:
    """Continue a pipeline with another model, or the same."""
    pipeline.swap(small_bundle(seed), toy_pipeline(small_bundle(seed)).engine)
