"""The contracts between packages: engine, source, decoder, sink, and their optional abilities.

A new source, decoder, engine or sink is one file that implements one of these and one row in the registry of its
package.  Constructors check their arguments and touch nothing outside the process; ``open`` (or the first use) does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from stream_gru.core.commit_records import FileOffset, FlushResult, OutboxState, ProcessedPackets, SinkCheckpoint
from stream_gru.core.types import F32, Position, PredictionBatch, RawMessage, SampleBatch, SinkHealth, SourceHealth


@runtime_checkable
class Engine(Protocol):
    """Computes the network.  Pure: the hidden state is an argument and a result, never kept and never changed in place.

    Shapes: B streams or T samples; I inputs (channels, then calendar inputs); S state numbers; K outputs.
    `stream_gru.model.manifest.Manifest.output_names` names the outputs.  All arrays are C-contiguous float32.
    """

    name: str
    input_size: int
    state_size: int
    output_size: int

    def initial_state(self, n: int) -> F32:
        """Return the initial state of n streams, ``(n, S)``."""
        ...

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance B streams by one sample: ``(B, I), (B, S) -> (B, K), (B, S)``."""
        ...

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance one stream by T samples: ``(T, I), (S,) -> (T, K), (S,)``; equal to T calls of `step`."""
        ...


@runtime_checkable
class ReportsExactness(Protocol):
    """An engine that makes its bits independent of the batch, in a way that depends on the processor."""

    @property
    def exactness(self) -> str:
        """Return a line of text on how it does so here."""
        ...


@runtime_checkable
class Source(Protocol):
    """Where bytes come from.  The daemon calls it from its loop, on one thread."""

    def open(self, position: Position | None) -> None:
        """Connect, or continue after ``position``.

        Raises SourceUnavailable (try again later), DataError when the input is not the one of ``position``.
        """
        ...

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return at most ``limit`` messages, none if nothing arrives in time.  Raises EndOfInput when finished."""
        ...

    def commit(self, position: Position) -> None:
        """Acknowledge the input up to ``position``: it is durable."""
        ...

    def close(self) -> None:
        """Release all resources; may be called twice."""
        ...

    def health(self) -> SourceHealth:
        """Return the state of the connection and the counters; called about once a second from the loop."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """Turns bytes into samples.  Unreadable records go to ``batch.rejected`` (see `Rejected`) and raise nothing."""

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order.  Raises DataError when the whole input cannot fit (a column is missing)."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Where predictions go.  A commit calls `flush`, runs the store's transaction, then calls `committed`."""

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Connect and continue from ``checkpoint``: cut off what no commit covers, resend what is not acknowledged.

        None means there is no store: a file is appended to.  Raises SinkUnavailable; StateError when the checkpoint
        does not fit the existing output.
        """
        ...

    def ready(self) -> bool:
        """Return whether another batch may be written now; if not, no source is read."""
        ...

    def write(self, batch: PredictionBatch) -> None:
        """Accept all rows of ``batch``, in order; never waits for another machine.  Raises SinkUnavailable."""
        ...

    def flush(self) -> FlushResult:
        """Make written outputs durable, or return those that the store has to hold.  Raises SinkUnavailable."""
        ...

    def committed(self) -> None:
        """The result of the last `flush` is committed: outputs may be sent, a file may be rotated."""
        ...

    def close(self) -> None:
        """Release all resources; may be called twice.  Outputs that were not flushed may be lost."""
        ...

    def health(self) -> SinkHealth:
        """Return the state of the connection and the counters; called about once a second from the loop."""
        ...


@runtime_checkable
class Redelivering(Protocol):
    """A source whose peer sends unacknowledged messages again, so that it must know what it has processed."""

    def resume(self, packets: Mapping[int, bytes]) -> None:
        """Take the packets of earlier commits, oldest first; called before `open`."""
        ...

    def processed_packets(self, position: Position) -> ProcessedPackets:
        """Return what a commit of ``position`` has to store.  Changes nothing: `commit` follows when it is stored."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """State for each stream beside the pipeline's; a commit stores it together with the stream's hidden state.

    `stream_gru.core.keyed_state.KeyedState` implements it.  Equal states give equal bytes.
    """

    def dirty_keys(self) -> Collection[str]:
        """Return the keys whose state differs from that of the last `mark_clean`."""
        ...

    def mark_clean(self) -> None:
        """Note that all changes are committed."""
        ...

    def snapshot(self, key: str) -> bytes | None:
        """Return the state of a key; None if there is none."""
        ...

    def restore(self, key: str, data: bytes) -> None:
        """Set the state that `snapshot` returned.  Raises StateError when it cannot be read."""
        ...

    def evict(self, key: str) -> None:
        """Drop the state of a key from memory; `restore` may bring it back.  Does nothing if the key is unknown."""
        ...


# ---- optional abilities of sources, decoders and sinks, tested with isinstance ---------------------------------------


@runtime_checkable
class HasState(Protocol):
    """A connector with state of its own for each stream: the checkpointer stores and restores it."""

    @property
    def state(self) -> Stateful:
        """Return the state."""
        ...


@runtime_checkable
class FlowControlled(Protocol):
    """A source whose peer waits for acknowledgements: a commit is due before ``max_inflight`` messages."""

    @property
    def max_inflight(self) -> int:
        """Number of messages that the peer sends before it waits for an acknowledgement."""
        ...


@runtime_checkable
class Reconfigurable(Protocol):
    """A source that can apply some changes of its configuration while it is open."""

    def update(self, config: object) -> bool:
        """Apply another configuration; return False if the source has to be reopened.  Raises ConfigError."""
        ...


@runtime_checkable
class KeepsSession(Protocol):
    """A source whose peer keeps messages for it while it is closed."""

    def forget(self) -> None:
        """Close permanently: the peer deletes what it keeps."""
        ...


@runtime_checkable
class TracksStreams(Protocol):
    """A sink that shows which streams are online."""

    def stream_status(self, stream: str, online: bool) -> None:
        """Publish that a stream became idle or sends again."""
        ...


@runtime_checkable
class WritesFile(Protocol):
    """A sink whose `flush` returns a file offset: it cuts its file back to the last commit when it opens."""

    def continues(self, offset: FileOffset) -> bool:
        """Return whether it is the file of this offset that the sink writes."""
        ...


@runtime_checkable
class HandsOver(Protocol):
    """A sink whose unacknowledged outputs another sink can take over."""

    def handoff(self) -> OutboxState:
        """Return the unacknowledged outputs; called after `close`."""
        ...

    def adopt(self, state: OutboxState) -> None:
        """Take over the outputs of another sink; called before the first `write`."""
        ...
