"""Ingest: from the messages of one source to samples that the pipeline takes.

    RawMessage ─▶ decoder ─▶ rate limit ─▶ admission ─▶ device clock ─▶ gap counter ─▶ channel join ─▶ pause filter
                  `decode`                 `apply`: brings the state of a batch's streams into memory first

Like the pipeline it does no I/O and reads no clock: a recording of the messages gives the same samples.  The state of
its parts is stored with the hidden states, so messages may be acknowledged while channels still wait for others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from stream_gru.core.errors import DataError
from stream_gru.core.protocols import Decoder, HasState, Stateful
from stream_gru.core.types import RawMessage, SampleBatch
from stream_gru.runtime.control.pause_filter import PauseFilter
from stream_gru.runtime.ingest.channel_join import ChannelJoiner
from stream_gru.runtime.ingest.device_counters import DeviceClock, GapCounter
from stream_gru.runtime.ingest.rate_limit import RateLimit

Admit = Callable[[SampleBatch], SampleBatch]


@dataclass(frozen=True, slots=True)
class IngestResult:
    """Samples of one source; ``joined`` records were joined, ``missing`` samples by the devices' own counters."""

    source: str
    batch: SampleBatch
    joined: int = 0
    missing: int = 0


@dataclass(frozen=True, slots=True)
class SharedStages:
    """The stages that all sources of one runtime share; each but ``admit`` may be absent.

    ``admit``: makes the state of a batch's streams available, rejects rows of streams beyond the limit.
    ``joiner``: joins channels that arrive in separate records, also from several sources.
    """

    admit: Admit
    rate_limit: RateLimit | None = None
    joiner: ChannelJoiner | None = None
    pause_filter: PauseFilter | None = None


NO_STAGES = SharedStages(admit=lambda batch: batch)


class Ingest:
    """The stages between the source ``name`` and the pipeline.

    ``joins``: whether its records pass the shared joiner.
    """

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        *,
        clock: DeviceClock | None = None,
        gaps: GapCounter | None = None,
        joins: bool = False,
        shared: SharedStages = NO_STAGES,
    ) -> None:
        self.name, self.joins = name, joins
        self._decoder, self._clock, self._gaps = decoder, clock, gaps
        self.shared = shared

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages, in order, and apply the rate limit.

        Raises DataError when a whole input can never fit.
        """
        batch = self._decoder.decode(raw)
        limit = self.shared.rate_limit
        return batch if limit is None else limit.apply(batch)

    def apply(self, batch: SampleBatch) -> IngestResult:
        """Take what `decode` returned through the other stages.  Raises StoreError."""
        shared = self.shared
        batch = shared.admit(batch)
        if self._clock is not None:
            batch = self._clock.apply(batch)
        missing = 0 if self._gaps is None else self._gaps.observe(batch)
        joined = 0
        if self.joins and shared.joiner is not None:
            done = shared.joiner.join(batch)
            batch, joined = done.batch, done.joined
        if shared.pause_filter is not None:
            batch = shared.pause_filter.apply(batch)
        return IngestResult(self.name, batch, joined, missing)

    def flush(self) -> IngestResult | None:
        """The samples that still wait for other channels, at the end of the input; None where no record ever waits."""
        joiner, pause_filter = self.shared.joiner, self.shared.pause_filter
        if not self.joins or joiner is None:
            return None
        batch = joiner.flush()
        return IngestResult(self.name, batch if pause_filter is None else pause_filter.apply(batch))

    def share(self, shared: SharedStages, max_streams: int) -> None:
        """Use these shared stages from now on, and keep the state of at most ``max_streams`` streams."""
        self.shared = shared
        for part in (self._clock, self._gaps):
            if part is not None:
                part.max_streams = max_streams

    def stateful_parts(self) -> dict[str, Stateful]:
        """The parts of this source alone that keep state, by name; joiner and pause filter are shared.

        The state of ``decoder`` is by device, before streams are known; that of the others is by stream.
        """
        parts: dict[str, Stateful] = {}
        if isinstance(self._decoder, HasState):
            parts["decoder"] = self._decoder.state
        if self._clock is not None:
            parts["clock"] = self._clock.state
        if self._gaps is not None:
            parts["gaps"] = self._gaps.state
        return parts


def group_by_source(
    raw: Sequence[RawMessage], ingests: Mapping[str, Ingest]
) -> Iterator[tuple[Ingest, list[RawMessage]]]:
    """Yield runs of messages of one source, each with its `Ingest`; a recording holds messages of several sources.

    Raises DataError for a message of a source that is not configured.
    """
    if len(ingests) == 1:
        (ingest,) = ingests.values()
        yield ingest, list(raw)
        return
    for name, run in groupby(raw, lambda message: message.source):
        if name not in ingests:
            known = ", ".join(ingests)
            raise DataError(f"the recording has messages of source {name}; the configuration has only {known}")
        yield ingests[name], list(run)
