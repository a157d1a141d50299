"""The map of the product: who promises what to whom.  A contract a role, few methods each.

A new source, decoder, engine or sink is one file that fulfils one of these and one row in the table of its room.
Constructors check their arguments and touch nothing outside; ``open`` (or the first use) touches the world.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol, runtime_checkable

from stream_gru.core.commit_records import FlushResult, ProcessedPackets, SinkCheckpoint
from stream_gru.core.types import F32, Position, PredictionBatch, RawMessage, SampleBatch, SinkHealth, SourceHealth


@runtime_checkable
class Engine(Protocol):
    """Computes the network.  Pure: the hidden state goes in and comes out, is never kept and never mutated.

    Shapes: B streams or T samples; I inputs (channels, then calendar inputs); S state numbers; K outputs.
    `stream_gru.model.bundle.Heads` says which outputs are what.  All arrays are C-contiguous float32.
    """

    name: str
    input_size: int
    state_size: int
    output_size: int

    def initial_state(self, n: int) -> F32:
        """Return ``(n, S)``: the state of n streams that have seen nothing."""
        ...

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance B streams by one sample: ``(B, I), (B, S) -> (B, K), (B, S)``."""
        ...

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance one stream by T samples: ``(T, I), (S,) -> (T, K), (S,)``; equal to T calls of `step`."""
        ...


@runtime_checkable
class Source(Protocol):
    """Where bytes come from.  The daemon owns the loop, a source only answers."""

    def open(self, position: Position | None) -> None:
        """Connect, or continue after ``position``.

        Raises SourceUnavailable (try again later), DataError when the input is another one than ``position`` was of.
        """
        ...

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return at most ``limit`` messages; ``[]`` when it is quiet.  Raises EndOfInput when finished."""
        ...

    def commit(self, position: Position) -> None:
        """Everything up to ``position`` is durable: acknowledge it."""
        ...

    def close(self) -> None:
        """Let go of everything; may be called twice."""
        ...

    def health(self) -> SourceHealth:
        """How it is doing; asked about once a second, from the thread of the loop."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """Turns bytes into samples.  Bad rows go to ``batch.rejected`` with a reason; nothing is raised for them."""

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order.  Raises DataError when a whole input can never fit (a column is missing)."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Where predictions go.  A commit is `flush`, the store's transaction, `committed`, in this order."""

    def open(self, kept: SinkCheckpoint | None) -> None:
        """Touch the outside, and go on where ``kept`` says: cut off what no commit covers, send what nobody confirmed.

        Without it there is no store: a file is appended to.  Raises SinkUnavailable, StateError where what is kept does
        not fit what is there.
        """
        ...

    def ready(self) -> bool:
        """Whether another batch may be written now; while it may not, nothing is read from any source."""
        ...

    def write(self, batch: PredictionBatch) -> None:
        """Take all rows of ``batch``, in order; never waits for another machine.  Raises SinkUnavailable."""
        ...

    def flush(self) -> FlushResult:
        """Make what was written durable, or say what of it the store shall keep.  Raises SinkUnavailable."""
        ...

    def committed(self) -> None:
        """What the last `flush` told is durable: it may be sent now, a file may be put aside."""
        ...

    def close(self) -> None:
        """Let go; may be called twice.  What was not flushed before need not survive."""
        ...

    def health(self) -> SinkHealth:
        """How it is doing; asked about once a second, from the thread of the loop."""
        ...


@runtime_checkable
class Redelivering(Protocol):
    """A source whose other side sends again what was not acknowledged: it must know what it has processed."""

    def resume(self, packets: Mapping[int, bytes]) -> None:
        """Before `open`: the packets of earlier commits, oldest first."""
        ...

    def processed_packets(self, position: Position) -> ProcessedPackets:
        """What a commit of ``position`` shall write down.  Changes nothing: `commit` follows when it is written."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A part that remembers something of each stream besides the pipeline; it is stored with the stream's state.

    What it gives and takes are bytes of its own form; the same memory always gives the same bytes.
    """

    def dirty_keys(self) -> Collection[str]:
        """Names of which something else is remembered than at the last `mark_clean`."""
        ...

    def mark_clean(self) -> None:
        """What has changed was written down."""
        ...

    def snapshot(self, name: str) -> bytes | None:
        """What is remembered of a name; None for nothing."""
        ...

    def restore(self, name: str, data: bytes) -> None:
        """Remember what `snapshot` gave.  Raises StateError when it cannot be read."""
        ...

    def evict(self, name: str) -> None:
        """Let go of a name, which may come back with `restore`; quiet when it is unknown."""
        ...
