"""The intake of one source: from its messages to samples that the pipeline takes.

    RawMessage ──▶ decoder ──▶ device clock ──▶ sequence watch ──▶ assembler ──▶ gate ──▶ SampleBatch
                               since boot        what is missing    channels      streams
                                                                    that arrive   that are
                                                                    apart         paused

Like the pipeline it does no I/O and reads no clock: a recording of the messages gives the same samples.  What its parts
remember is stored with the hidden states, so that messages may be acknowledged while channels still wait for others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, runtime_checkable

from stream_gru.core.errors import DataError
from stream_gru.core.protocols import Decoder, Stateful
from stream_gru.core.types import RawMessage, SampleBatch
from stream_gru.runtime.control.commands import PauseFilter
from stream_gru.runtime.ingest.channel_join import Assembler
from stream_gru.runtime.ingest.device_clock import DeviceClock
from stream_gru.runtime.ingest.rate_limit import RateLimit
from stream_gru.runtime.ingest.sequence_gaps import SequenceWatch


@dataclass(frozen=True, slots=True)
class Arrived:
    """Samples of one source, and what was seen on the way: records joined, samples missing by the device's counter."""

    source: str
    batch: SampleBatch
    joined: int = 0
    missing: int = 0


@runtime_checkable
class _Mindful(Protocol):
    """A decoder that remembers what devices said."""

    @property
    def memory(self) -> Stateful: ...


class Intake:
    """What stands between the source called ``name`` and the pipeline; every part but the decoder may be absent.

    The assembler is shared by all sources whose channels arrive apart: they may bring channels of one stream.
    """

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        *,
        clock: DeviceClock | None = None,
        sequence: SequenceWatch | None = None,
        assembler: Assembler | None = None,
        gate: PauseFilter | None = None,
        rate: RateLimit | None = None,
    ) -> None:
        self.name = name
        self._decoder, self._clock, self._sequence = decoder, clock, sequence
        self._assembler, self._gate, self._rate = assembler, gate, rate

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Make samples of messages, in order, and see of which streams they are.

        Raises DataError when a whole input can never fit.
        """
        batch = self._decoder.decode(raw)
        return batch if self._rate is None else self._rate.apply(batch)

    def take(self, batch: SampleBatch) -> Arrived:
        """Hand on what `decode` gave: what is remembered of ``batch.streams`` is needed now."""
        if self._clock is not None:
            batch = self._clock.apply(batch)
        missing = 0 if self._sequence is None else self._sequence.observe(batch)
        joined = 0
        if self._assembler is not None:
            done = self._assembler.join(batch)
            batch, joined = done.batch, done.joined
        return Arrived(self.name, batch if self._gate is None else self._gate.apply(batch), joined, missing)

    def adapt(self, assembler: Assembler | None, rate: RateLimit | None, max_streams: int) -> None:
        """Go on with another assembler, where there is one, with another limit and room for so many streams."""
        self._assembler = None if self._assembler is None else assembler
        self._rate = rate
        for part in (self._clock, self._sequence, self._assembler):
            if part is not None:
                part.max_streams = max_streams

    @property
    def assembles(self) -> bool:
        """Whether records wait here for other channels."""
        return self._assembler is not None

    def remembering(self) -> dict[str, Stateful]:
        """The parts of this intake alone that remember something, by name: assembler and gate are shared.

        What ``decoder`` remembers is of devices, before streams are known; the others remember streams.
        """
        parts: dict[str, Stateful] = {}
        if isinstance(self._decoder, _Mindful):
            parts["decoder"] = self._decoder.memory
        if self._clock is not None:
            parts["clock"] = self._clock.memory
        if self._sequence is not None:
            parts["sequence"] = self._sequence.memory
        return parts

    def finish(self) -> Arrived | None:
        """What was still waiting for other channels, once no more will come; None where nothing ever waits."""
        if self._assembler is None:
            return None
        batch = self._assembler.flush()
        return Arrived(self.name, batch if self._gate is None else self._gate.apply(batch))


def by_source(raw: Sequence[RawMessage], intakes: Mapping[str, Intake]) -> Iterator[tuple[Intake, list[RawMessage]]]:
    """Yield runs of messages of one source, each with its intake; a recording holds those of several."""
    if len(intakes) == 1:
        (intake,) = intakes.values()
        yield intake, list(raw)
        return
    for name, run in groupby(raw, lambda message: message.source):
        if name not in intakes:
            known = ", ".join(intakes)
            raise DataError(f"{name}: the recording is of this source, the configuration has only {known}")
        yield intakes[name], list(run)
