"""The intake of one source: from its messages to samples that the pipeline takes.

    RawMessage ──▶ decoder ──▶ device clock ──▶ sequence watch ──▶ assembler ──▶ gate ──▶ SampleBatch
                               since boot        what is missing    channels      streams
                                                                    that arrive   that are
                                                                    apart         paused

Like the pipeline it does no I/O and reads no clock: a recording of the messages gives the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from stream_gru.control import Gate
from stream_gru.errors import DataError
from stream_gru.intake.assembly import Assembler
from stream_gru.intake.device_clock import DeviceClock
from stream_gru.intake.sequence import SequenceWatch
from stream_gru.protocols import Decoder
from stream_gru.types import RawMessage, SampleBatch


@dataclass(frozen=True, slots=True)
class Arrived:
    """Samples of one source, and what was seen on the way: records joined, samples missing by the device's counter."""

    source: str
    batch: SampleBatch
    joined: int = 0
    missing: int = 0


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
        gate: Gate | None = None,
    ) -> None:
        self.name = name
        self._decoder, self._clock, self._sequence = decoder, clock, sequence
        self._assembler, self._gate = assembler, gate

    def take(self, raw: Sequence[RawMessage]) -> Arrived:
        """Make samples of messages, in order.  Raises DataError when a whole input can never fit."""
        batch = self._decoder.decode(raw)
        if self._clock is not None:
            batch = self._clock.apply(batch)
        missing = 0 if self._sequence is None else self._sequence.observe(batch)
        joined = 0
        if self._assembler is not None:
            done = self._assembler.join(batch)
            batch, joined = done.batch, done.joined
        return Arrived(self.name, batch if self._gate is None else self._gate.apply(batch), joined, missing)

    @property
    def records(self) -> int:
        """Number of the last record that was taken in, where channels arrive apart; else 0."""
        return 0 if self._assembler is None else self._assembler.records

    @property
    def oldest_pending(self) -> int | None:
        """Number of the oldest record that waits for other channels; None when none does."""
        return None if self._assembler is None else self._assembler.oldest_pending

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
