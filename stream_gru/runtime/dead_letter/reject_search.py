"""The search for culprits: which of many messages a decoder refused, and why.

Decision: decoders tell reasons and numbers, nothing else, and good input pays nothing.  Where something was refused its
messages are decoded once more by a twin of the decoder, first in groups, then one by one, then line by line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import isqrt
from typing import NamedTuple

from stream_gru.core.errors import DataError
from stream_gru.core.protocols import Decoder, Stateful
from stream_gru.core.types import DropReason, RawMessage, SampleBatch
from stream_gru.runtime.dead_letter.cpu_budget import Budget


class Culprit(NamedTuple):
    """A message, or a line of one, of which ``records`` were refused for this reason."""

    message: RawMessage
    reason: DropReason
    records: int


class Search:
    """Finds culprits with ``twin``, a decoder as that of the source, which nobody else uses.

    ``memory`` is what the source's own decoder remembers of devices, where it does: it is lent to the twin, as it is
    after the batch.  A device that changed its names within one batch may so be suspected wrongly; counters never are.
    """

    def __init__(self, twin: Decoder, memory: Stateful | None = None) -> None:
        self._twin, self._memory = twin, memory
        own = getattr(twin, "memory", None)
        self._own = own if isinstance(own, Stateful) else None

    def culprits(self, messages: Sequence[RawMessage], budget: Budget) -> Iterator[Culprit]:
        """Culprits among messages without a fault, in order; no more when the budget is spent."""
        suspects = [message for message in messages if message.fault is None]
        lent = self._lend(suspects)
        try:
            yield from self._among(suspects, budget)
        except DataError:  # an input that can never fit: whoever owns the decoder was told
            return
        finally:
            if self._own is not None:
                for name in lent:
                    self._own.evict(name)

    def _among(self, suspects: Sequence[RawMessage], budget: Budget) -> Iterator[Culprit]:
        size = isqrt(len(suspects))
        for first in range(0, len(suspects), size or 1):
            group = suspects[first : first + size]
            if budget.spent:
                return
            if not self._refused(group, budget).rejected:
                continue
            for message in group:
                if budget.spent:
                    return
                batch = self._refused([message], budget)
                if batch.rejected:
                    yield from self._within(message, batch, budget)

    def _within(self, message: RawMessage, batch: SampleBatch, budget: Budget) -> Iterator[Culprit]:
        """The lines at fault, where the message is nothing but its lines; else the message."""
        lines = [line for line in message.payload.split(b"\n") if line.strip()]
        if len(lines) > 1 and not budget.spent:
            each = [replace(message, payload=line) for line in lines]
            apart = self._refused(each, budget)
            if (apart.received, dict(apart.rejected)) == (batch.received, dict(batch.rejected)):
                yield from self._among(each, budget)
                return
        for reason, n in batch.rejected.items():
            yield Culprit(message, reason, n)

    def _refused(self, messages: Sequence[RawMessage], budget: Budget) -> SampleBatch:
        with budget.work():
            return self._twin.decode(messages)

    def _lend(self, messages: Sequence[RawMessage]) -> list[str]:
        """Have the twin remember what these devices said; return their names."""
        if self._own is None or self._memory is None:
            return []
        names = list(dict.fromkeys(f"{message.source}\t{message.key}" for message in messages))
        for name in names:
            data = self._memory.snapshot(name)
            if data is not None:
                self._own.restore(name, data)
        return names
