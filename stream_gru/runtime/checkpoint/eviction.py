"""The crowd: which streams are in memory, who makes room and who comes back.

    load:  every stream of a batch is in memory ─▶ ... ─▶ commit ─▶ evict the longest idle

Decision: eviction happens only behind a commit, when every row is written; so nothing is ever parked in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stream_gru.core.errors import StateError
from stream_gru.core.protocols import Stateful
from stream_gru.core.types import DropReason, Mask, SampleBatch
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.lru_keys import LruKeys
from stream_gru.runtime.checkpoint.restore import KeptCounts, Restorer
from stream_gru.runtime.checkpoint.store import Store, StoredRow


@dataclass(frozen=True, slots=True)
class Policy:
    """What a keeper does where it has a choice.

    ``evict``: beyond ``max_streams`` the stream that was idle for longest makes room, instead of new ones being
    refused; ``max_stored``: then so many are kept in all.  ``refuse_other_model``: stored states of another model are
    an error, instead of being reset.
    """

    max_streams: int = 1000
    evict: bool = False
    max_stored: int = 100_000
    refuse_other_model: bool = False


class EvictionCache:
    """The streams of one pipeline, in memory or evicted.  All of it belongs to the thread of the loop.

    ``store`` None: nobody is evicted.  ``parts``: those that remember something of streams, by a name that stays.
    """

    def __init__(
        self, pipeline: Pipeline, store: Store | None, components: Mapping[str, Stateful] | None, policy: Policy
    ) -> None:
        self.store, self.components = store, dict(components or {})
        self.counts = KeptCounts()
        self._pipeline, self._policy = pipeline, policy
        self._returning = Restorer(pipeline, self.counts, refuse_other_model=policy.refuse_other_model)
        self._residents = LruKeys(policy.max_streams)
        self._known = 0  # names of which something is kept, or will be
        self._forgotten: set[str] = set()  # what is stored of them goes with the next commit
        self._all_reset_at = -1

    def set_policy(self, policy: Policy) -> None:
        """Go by another policy from now on, right behind a commit."""
        evicted, self._policy = self.evicts, policy
        self._returning.refuse_other_model = policy.refuse_other_model
        self._residents.most = policy.max_streams
        if self.store is not None and self.evicts:
            self._known = self.store.count_known()
        if self.store is not None and evicted and not self.evicts:
            self._return_all(self.store)
        self._residents.heard(name for name in self._pipeline.streams if name not in self._residents)

    @property
    def evicts(self) -> bool:
        """Whether streams make room for each other."""
        return self._policy.evict and self.store is not None

    # ---- who comes and goes ---------------------------------------------------------------------------------------

    def load_streams(self, batch: SampleBatch) -> SampleBatch:
        """Make sure that all streams of a batch are in memory; rows of streams too many are rejected.

        Raises StoreError.
        """
        if not self.evicts:
            return batch
        refused = {name for name in batch.stream_names if name not in self._residents and not self._return(name)}
        self._residents.heard(name for name in batch.stream_names if name not in refused)
        return _without(batch, refused) if refused else batch

    def _require_room(self, name: str) -> bool:
        """Return whether a stream that shall be taken in is a new one.  Raises StateError when it is one too many."""
        if not self.evicts:
            new, count = name not in self._pipeline.table, len(self._pipeline.streams)
            if new and count >= self._policy.max_streams:
                raise StateError(
                    f"stream {name}: {count} streams are here already, run.max_streams = {self._policy.max_streams}; "
                    "raise it"
                )
            return new
        new = name not in self._residents and self._kept(name) == (None, {})
        if new and self._known >= self._policy.max_stored:
            raise StateError(
                f"stream {name}: {self._known} streams are kept already, "
                f"run.max_stored_streams = {self._policy.max_stored}; raise it, or forget some"
            )
        return new

    def _kept(self, name: str) -> tuple[StoredRow | None, Mapping[str, bytes | None]]:
        """The row of a stream, and what parts remembered of it, as the next commit leaves them.  Raises StoreError."""
        if self.store is None or name in self._forgotten:
            return None, {}
        return self.store.row(name), self.store.states_of_stream(name)

    def _return(self, name: str) -> bool:
        """Bring a stream back that was evicted, or let a new one in; False when there are too many."""
        stored, memories = self._kept(name)
        if stored is None and not memories:
            if self._known >= self._policy.max_stored:
                return False
            self._known += 1
            return True
        if stored is not None:
            self._returning.stream(stored, self._all_reset_at)
        self._returning.memories(name, self.components, memories)
        self.counts.restored += 1
        return True

    def _return_all(self, store: Store) -> None:
        """Streams make no room for each other any more: those that were evicted come back, as at a start."""
        remembered = [name for part in self.components for name in store.states_of_component(part)]
        for name in dict.fromkeys((*store.names(), *remembered)):
            if name not in self._residents:
                self._return(name)

    def _evict(self, idle: Sequence[str]) -> None:
        for name in idle:
            if name in self._pipeline.table:
                self._pipeline.table.evict(name)
            elif self._kept(name) == (None, {}):
                self._known -= 1  # let in, and never heard of: all of its samples were left out
            for part in self.components.values():
                part.evict(name)
        self.counts.evicted += len(idle)

    # ---- what is asked of streams ---------------------------------------------------------------------------------

    def stream_names(self) -> list[str]:
        """All streams, in memory or evicted, by name.  Raises StoreError."""
        evicted = self.store.names() if self.evicts and self.store is not None else ()
        return sorted({*self._pipeline.streams, *(name for name in evicted if name not in self._forgotten)})

    def has_stream(self, name: str) -> bool:
        """Whether there is a stream of this name, in memory or evicted.  Raises StoreError."""
        return name in self._pipeline.table or (self.evicts and self._kept(name)[0] is not None)

    def reset(self, name: str | None) -> int:
        """Reset one stream, or all, before the next sample; evicted ones too.  Return how many; 0: unknown.

        Raises StoreError.
        """
        if name is not None:
            if not self.has_stream(name):
                return 0
            if name not in self._pipeline.table:
                self._return(name)
                self._residents.heard([name])
            return self._pipeline.reset(name)
        count = self._pipeline.reset()
        if self.evicts and self.store is not None:
            self._all_reset_at = self.store.commit_no
            count = max(count, self.store.count())
        return count

    def delete_stream(self, name: str) -> None:
        """Let go of a stream for good, here and, with the next commit, in the store; it may come again as a new one.

        Raises StoreError.
        """
        if self.evicts and (name in self._residents or self._kept(name) != (None, {})):
            self._known -= 1
        self._residents.drop(name)
        if name in self._pipeline.table:
            self._pipeline.table.evict(name)
        for part in self.components.values():
            part.evict(name)
        self._forgotten.add(name)


def _without(batch: SampleBatch, refused: Collection[str]) -> SampleBatch:
    """The batch without rows of these streams, which count as beyond the limit."""
    out: Mask = np.array([name in refused for name in batch.stream_names], np.bool_)[batch.stream_index]
    return batch.rejecting(out, DropReason.STREAM_LIMIT)
