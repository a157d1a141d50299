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

import numpy as np

from stream_gru.core.errors import DataError
from stream_gru.core.protocols import Decoder, HasState, Stateful
from stream_gru.core.types import I64, NS_PER_S, DropReason, RawMessage, Rejected, SampleBatch
from stream_gru.runtime.control.executor import PauseFilter
from stream_gru.runtime.ingest.channel_join import ChannelJoiner
from stream_gru.runtime.ingest.device_counters import DeviceClock, GapCounter

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

    ``joins``: whether its records pass the shared joiner.  ``explain``: what is wrong with a rejected record, for the
    log; empty where that is not known.
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
        explain: Callable[[Rejected], str] = lambda _: "",
    ) -> None:
        self.name, self.joins, self.explain = name, joins, explain
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


_LONGEST_NS = 2**61  # sums of two such numbers fit into 64 bits


class RateLimit:
    """Drops the rows beyond ``per_s`` samples of all streams or ``per_s_of_a_stream``; 0 is no limit.

    A token bucket that is one number, the time at which it will be full again; it holds what may arrive in a second.  A
    dropped row takes no token.  Of more than ``max_streams`` streams those idle for longest are forgotten: their
    buckets are full again, that of all streams is not.  Nothing is stored: after a restart all buckets are full.

    Decision: time is the arrival that the message carries, in whole nanoseconds, so that a recording of the messages
    gives the same samples, however they are batched.  Rows without arrival, those of recorded samples, pass.

    Source: ITU-T I.371, "generic cell rate algorithm".
    """

    def __init__(self, per_s: float = 0.0, per_s_of_a_stream: float = 0.0, max_streams: int = 10_000) -> None:
        self._all, self._each = _Bucket.of(per_s), _Bucket.of(per_s_of_a_stream)
        self._max_streams = max_streams
        self._full_all_ns = 0
        self._full_ns: dict[str, int] = {}

    def apply(self, batch: SampleBatch) -> SampleBatch:
        """Return ``batch`` without the rows that come too fast, which are rejected as RATE."""
        arrival = batch.arrival_ns
        if arrival is None or not len(batch) or (self._all is None and self._each is None):
            return batch
        if self._takes_all(batch, arrival):
            return batch
        streams = [batch.stream_names[code] for code in batch.stream_index.tolist()]
        keep = np.array([self._takes(*row) for row in zip(streams, arrival.tolist(), strict=True)], np.bool_)
        return batch.rejecting(~keep, DropReason.RATE)

    def _takes_all(self, batch: SampleBatch, arrival: I64) -> bool:
        """Take all rows at once where none is too fast, and say so; else change nothing."""
        if not (arrival[0] > 0 and arrival[-1] < _LONGEST_NS and bool((arrival[1:] >= arrival[:-1]).all())):
            return False
        full_all_ns = 0 if self._all is None else self._all.after(arrival, self._full_all_ns)
        if full_all_ns is None:
            return False
        after: dict[str, int] = {}
        if self._each is not None:
            codes, last = np.unique(batch.stream_index[::-1], return_index=True)
            for code in codes[np.argsort(-last)].tolist():  # the one heard of last is the last one to be forgotten
                name = batch.stream_names[code]
                mine = arrival if len(codes) == 1 else arrival[batch.stream_index == code]
                full_ns = self._each.after(mine, self._full_ns.get(name, 0))
                if full_ns is None:
                    return False
                after[name] = full_ns
            if len(self._full_ns.keys() | after.keys()) > self._max_streams:
                return False
        self._full_all_ns = full_all_ns
        for name, full_ns in after.items():
            self._full_ns.pop(name, None)
            self._full_ns[name] = full_ns
        return True

    def _takes(self, stream: str, now: int) -> bool:
        """Whether a row is taken that arrived ``now``."""
        if not 0 < now < _LONGEST_NS:
            return True
        full_all_ns, full_ns = self._full_all_ns, 0
        taken = True
        if self._all is not None:
            full_all_ns = self._all.at(now, full_all_ns)
            taken = full_all_ns - now <= self._all.depth_ns
        if self._each is not None:
            full_ns = self._each.at(now, self._full_ns.pop(stream, 0))
            taken = taken and full_ns - now <= self._each.depth_ns
            if len(self._full_ns) >= self._max_streams:
                del self._full_ns[next(iter(self._full_ns))]
            self._full_ns[stream] = full_ns + self._each.token_ns if taken else full_ns
        if self._all is not None:
            self._full_all_ns = full_all_ns + self._all.token_ns if taken else full_all_ns
        return taken


class _Bucket:
    """A rate: ``token_ns`` is the time of one sample, ``depth_ns`` that of all the samples that fit but one."""

    def __init__(self, per_s: float) -> None:
        self.token_ns = max(1, round(NS_PER_S / per_s))
        self.depth_ns = max(0, NS_PER_S - self.token_ns)

    @staticmethod
    def of(per_s: float) -> _Bucket | None:
        return _Bucket(per_s) if per_s else None

    def at(self, now: int, full_ns: int) -> int:
        """When the bucket will be full, seen from ``now``; after a clock was set back it is empty, not closed."""
        return min(max(full_ns, now), now + self.depth_ns + self.token_ns)

    def after(self, arrival: I64, full_ns: int) -> int | None:
        """When it will be full after a row at each ``arrival``, which never falls; None where one is too fast."""
        if full_ns > int(arrival[0]) + self.depth_ns:
            return None
        taken = np.arange(len(arrival), dtype=np.int64) * self.token_ns
        full = np.maximum(np.maximum.accumulate(arrival - taken), full_ns) + taken  # when each row comes, it included
        if (full - arrival > self.depth_ns).any():
            return None
        return int(full[-1]) + self.token_ns
