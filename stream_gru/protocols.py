"""The map of the product: who promises what to whom.  Four contracts, at most five methods each.

A new source, decoder, engine or sink is one file that fulfils one of these and one row in the table of its room.
Constructors check their arguments and touch nothing outside; ``open`` (or the first use) touches the world.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from stream_gru.types import F32, Position, PredictionBatch, RawMessage, SampleBatch, SinkHealth, SourceHealth


@runtime_checkable
class Engine(Protocol):
    """Computes the network.  Pure: the hidden state goes in and comes out, is never kept and never mutated.

    Shapes: B streams or T samples; I inputs (channels, then calendar inputs); S state numbers; K outputs.
    `stream_gru.bundle.Heads` says which outputs are what.  All arrays are C-contiguous float32.
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
        """Connect, or continue after ``position``.  Raises SourceUnavailable (try again later)."""
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
    """Where predictions go."""

    def open(self) -> None:
        """Touch the outside.  Raises SinkUnavailable."""
        ...

    def write(self, batch: PredictionBatch) -> None:
        """Write all rows of ``batch``, in order.  Raises SinkUnavailable."""
        ...

    def flush(self) -> int:
        """Make what was written durable; return its length in bytes.  Never waits for another machine.

        Raises SinkPending while the other side has not confirmed it; called again, it goes on with what had been
        written at the first call, whatever was written since.  Raises SinkUnavailable when it never will be.
        """
        ...

    def close(self) -> None:
        """Flush and let go; may be called twice."""
        ...

    def health(self) -> SinkHealth:
        """How it is doing; asked about once a second, from the thread of the loop."""
        ...
