"""How many samples a second are taken: of each stream, and of all together.

Source: ITU-T I.371, "generic cell rate algorithm", a token bucket that is one number: the time at which it will be full
again.  A bucket holds what may come in a second, so a rate is kept in the long run and a burst of a second passes.

Decision: time is that of arrival as the message has it, in whole nanoseconds, so that a recording of the messages gives
the same samples, however they are batched.  Rows whose arrival nobody knows, those of recorded samples, pass.  Nothing
of it is stored: after a restart all buckets are full.
"""

from __future__ import annotations

import numpy as np

from stream_gru.core.types import I64, NS_PER_S, DropReason, SampleBatch

_LONGEST_NS = 2**61  # sums of two such numbers fit into 64 bits


class RateLimit:
    """Drops the rows beyond ``per_s`` samples of all streams or ``per_s_of_a_stream``; 0 is no limit.

    A dropped row takes no token.  Of more than ``max_streams`` streams those are forgotten that were silent longest:
    their buckets are full again, that of all streams is not.
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
