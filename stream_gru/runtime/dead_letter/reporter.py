"""Poison: messages that were refused.  Each is counted by whoever refused it; here some are shown and kept.

    batch.rejected ──▶ search ──▶ culprits ──▶ log, a few lines          a good batch costs one look
                       again, one by one   ╰─▶ dead letters, a bounded file

Poison is acknowledged like everything else: not to do so would bring it again for ever.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from stream_gru.core.types import DropReason, RawMessage, SampleBatch
from stream_gru.runtime.dead_letter.cpu_budget import Budget
from stream_gru.runtime.dead_letter.file import DeadLetters
from stream_gru.runtime.dead_letter.log_limit import Lines
from stream_gru.runtime.dead_letter.reject_search import Culprit, Search

__all__ = ["Culprit", "DeadLetters", "Poison", "Search"]


class Poison:
    """Shows which messages were refused, and keeps them in ``dead_letters``.

    ``searches``: by source, how its culprits are found; a source without only has its faults shown.  All of it takes
    at most a fiftieth of the time: of a flood of garbage a part is shown and kept, and how much was left out is said.
    """

    def __init__(
        self,
        searches: Mapping[str, Search],
        dead_letters: DeadLetters | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._searches, self._letters = dict(searches), dead_letters
        self._budget, self._lines = Budget(clock), Lines(clock)

    def observe(self, source: str, messages: Sequence[RawMessage], batch: SampleBatch) -> None:
        """Look at what a decoder made of ``messages``: all of one call, as `Intake.decode` got and gave them."""
        if not batch.rejected:
            return
        left = Counter(batch.rejected)
        del left[DropReason.RATE]  # too many of them, each of which is good
        for culprit in self._faults(messages):
            if not self._wanted(source, culprit.reason):
                continue
            self._show(source, culprit, left)
        if source in self._searches and any(self._wanted(source, reason) for reason in +left):
            for culprit in self._searches[source].culprits(messages, self._budget):
                self._show(source, culprit, left)
                if not any(self._wanted(source, reason) for reason in +left):
                    break
        for reason, n in (+left).items():
            self._lines.leave_out(source, reason, n)

    def close(self) -> None:
        """Say what was left out of the log, and let go of the file."""
        self._lines.close()
        if self._letters is not None:
            self._letters.close()

    def _faults(self, messages: Sequence[RawMessage]) -> list[Culprit]:
        """What the sources themselves refused."""
        return [Culprit(message, message.fault, 1) for message in messages if message.fault is not None]

    def _wanted(self, source: str, reason: DropReason) -> bool:
        """Whether another one would be shown or kept now."""
        return not self._budget.spent and (self._letters is not None or self._lines.open(source, reason))

    def _show(self, source: str, culprit: Culprit, left: Counter[DropReason]) -> None:
        with self._budget.work():
            shown = self._lines.tell(source, culprit)
            if self._letters is not None:
                self._letters.keep(source, culprit.message, culprit.reason)
        if shown:
            left[culprit.reason] -= culprit.records
