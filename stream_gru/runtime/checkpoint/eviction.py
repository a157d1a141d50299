"""Which streams are in memory: restores stored streams, all or on demand, and evicts the least recently used.

    load_streams: every stream of a batch is in memory ─▶ ... ─▶ commit ─▶ evict_idle

Decision: eviction happens only after a commit, when every row is stored, so an evicted stream needs no buffer.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from stream_gru.core.errors import IncompatibleStateError, StateError
from stream_gru.core.protocols import Stateful
from stream_gru.core.types import DropReason, Mask, ResetReason, SampleBatch
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.runtime.checkpoint.commit import StoredRow
from stream_gru.runtime.checkpoint.store import Store

log = logging.getLogger(__name__)

_LOGGED = 10
_CHECKSUM = "wrong checksum"


@dataclass(slots=True)
class CheckpointCounts:
    """Counts since the process started."""

    damaged: int = 0
    evicted: int = 0
    restored: int = 0
    commits: int = 0


class Restorer:
    """Restores rows and component states, and counts those that cannot be used.

    ``reject_other_model``: a state of another model is an error instead of a reset.
    """

    def __init__(self, pipeline: Pipeline, counts: CheckpointCounts, *, reject_other_model: bool) -> None:
        self._pipeline, self._counts = pipeline, counts
        self.reject_other_model = reject_other_model
        self._schemas: dict[str, RowSchema] = {}

    def stream(self, stored: StoredRow, all_reset_at: int) -> bool:
        """Restore a stream into the pipeline; return whether its hidden state is kept.

        ``all_reset_at``: number of the last commit before a reset of all streams.
        """
        try:
            if stored.row is None:
                raise StateError(_CHECKSUM)
            kept = self._pipeline.restore_stream(stored.name, self._schema(stored.schema), stored.row)
        except StateError as error:
            self._log_damaged(f"stream {stored.name}: stored state cannot be used: {error}; the stream is reset")
            self._pipeline.reset_damaged(stored.name, ResetReason.STATE_DAMAGED)
            return False
        if stored.commit_no <= all_reset_at:
            self._pipeline.reset(stored.name)
        return kept

    def component(self, name: str, component: Stateful, found: Mapping[str, bytes | None]) -> None:
        """Restore all states of one component, given by key."""
        for key, data in found.items():
            self._restore(name, component, key, data)

    def components(self, stream: str, components: Mapping[str, Stateful], found: Mapping[str, bytes | None]) -> None:
        """Restore one stream's states of all components, given by component."""
        for name, data in found.items():
            if name in components:
                self._restore(name, components[name], stream, data)

    def _restore(self, name: str, component: Stateful, key: str, data: bytes | None) -> None:
        try:
            if data is None:
                raise StateError(_CHECKSUM)
            component.restore(key, data)
        except StateError as error:
            owner = f"stream {key}" if key else "all streams"
            self._log_damaged(f"{owner}: stored state of {name} cannot be used: {error}")

    def _schema(self, text: str) -> RowSchema:
        """Parse a schema; most rows have the same one.  Raises StateError."""
        if text not in self._schemas:
            self._schemas = {text: RowSchema.read(text)}
        return self._schemas[text]

    def check_models(self, schemas: Iterable[str], last_model: str) -> None:
        """Raise IncompatibleStateError if the last run had another model and ``reject_other_model`` is set.

        ``last_model`` is empty if it is unknown.  Older rows, of streams that were evicted before, may be of any model:
        they are reset when they are restored.
        """
        mine = self._pipeline.manifest.model_id
        stored = [last_model] if last_model else self._models(schemas)
        if self.reject_other_model and any(model != mine for model in stored):
            other = next(model for model in stored if model != mine)
            raise IncompatibleStateError(
                f"expected states of model {mine}, which is the bundle's, got states of model {other}; "
                'use the bundle of that model, or set run.on_model_change = "reset"'
            )

    def _models(self, schemas: Iterable[str]) -> list[str]:
        """Return the models of all readable schemas; `stream` reports the others."""
        models = []
        for text in schemas:
            with suppress(StateError):
                models.append(self._schema(text).model_id)
        return models

    def _log_damaged(self, text: str) -> None:
        self._counts.damaged += 1
        if self._counts.damaged <= _LOGGED:
            log.error("%s", text)
        elif self._counts.damaged == _LOGGED + 1:
            log.error("more stored states cannot be used; see stream_gru_states_damaged_total")


@dataclass(frozen=True, slots=True)
class StatePolicy:
    """Limits on streams, and what happens to states of another model.

    ``evict``               beyond ``max_streams`` the least recently used stream is evicted; else new ones are rejected
    ``max_stored_streams``  with ``evict``: most streams in memory and store together
    ``reject_other_model``  a stored state of another model is an error instead of a reset
    """

    max_streams: int = 1000
    evict: bool = False
    max_stored_streams: int = 100_000
    reject_other_model: bool = False


class LruKeys:
    """Names of streams in the order of their last use; those beyond ``capacity`` can be evicted."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._names: dict[str, None] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    def use(self, names: Iterable[str]) -> None:
        """Add names, or move them to the end."""
        for name in names:
            self._names.pop(name, None)
            self._names[name] = None

    def drop(self, name: str) -> None:
        """Remove a name.  Does nothing if it is unknown."""
        self._names.pop(name, None)

    def pop_surplus(self) -> list[str]:
        """Remove and return the names beyond ``capacity``, least recently used first."""
        surplus = [name for name, _ in zip(self._names, range(len(self._names) - self.capacity), strict=False)]
        for name in surplus:
            del self._names[name]
        return surplus


class EvictionCache:
    """The streams of one pipeline, in memory or evicted to the store.  Used by one thread.

    ``store`` None: no stream is evicted.  ``components``: parts with per-stream state, by their name in the store.
    """

    def __init__(
        self, pipeline: Pipeline, store: Store | None, components: Mapping[str, Stateful], policy: StatePolicy
    ) -> None:
        self.components, self.policy = components, policy
        self.counts = CheckpointCounts()
        self.restorer = Restorer(pipeline, self.counts, reject_other_model=policy.reject_other_model)
        self.deleted: set[str] = set()  # streams that the next commit deletes in the store
        self.all_reset_at = -1
        self._pipeline, self._store = pipeline, store
        self._in_memory = LruKeys(policy.max_streams)
        self._known = 0  # names with a row or a component state, in memory or store

    @property
    def evicts(self) -> bool:
        """Whether streams are evicted."""
        return self.policy.evict and self._store is not None

    def set_policy(self, policy: StatePolicy) -> None:
        """Use another policy from now on; called right after a commit.  Raises StoreError."""
        evicted, self.policy = self.evicts, policy
        self.restorer.reject_other_model = policy.reject_other_model
        self._in_memory.capacity = policy.max_streams
        if self._store is not None and self.evicts:
            self._known = self._store.count_known()
        if self._store is not None and evicted and not self.evicts:
            self._load_all(self._store)
        self._in_memory.use(name for name in self._pipeline.streams if name not in self._in_memory)

    # ---- loading and evicting -------------------------------------------------------------------------------------

    def recover(self, store: Store) -> int:
        """Load the streams that fit into memory, without component states; return how many of them are reset.

        Raises StoreError.
        """
        self._known = store.count_known()
        reset = 0
        for stored in store.rows(self.policy.max_streams if self.evicts else None):
            reset += not self.restorer.stream(stored, self.all_reset_at)
            self._in_memory.use([stored.name])
        return reset

    def load_streams(self, batch: SampleBatch) -> SampleBatch:
        """Load all streams of a batch; rows of streams beyond the limit are rejected.  Raises StoreError."""
        if not self.evicts:
            return batch
        rejected = {name for name in batch.stream_names if name not in self._in_memory and not self._load(name)}
        self._in_memory.use(name for name in batch.stream_names if name not in rejected)
        return _without(batch, rejected) if rejected else batch

    def _load(self, name: str) -> bool:
        """Load an evicted stream, or accept a new one; return False if there are too many."""
        row, states = self._stored(name)
        if row is None and not states:
            if self._known >= self.policy.max_stored_streams:
                return False
            self._known += 1
            return True
        if row is not None:
            self.restorer.stream(row, self.all_reset_at)
        self.restorer.components(name, self.components, states)
        self.counts.restored += 1
        return True

    def _load_all(self, store: Store) -> None:
        """Load all evicted streams."""
        with_state = [name for component in self.components for name in store.states_of_component(component)]
        for name in dict.fromkeys((*store.names(), *with_state)):
            if name not in self._in_memory:
                self._load(name)

    def _stored(self, name: str) -> tuple[StoredRow | None, Mapping[str, bytes | None]]:
        """Return the row and the component states of a stream as the next commit leaves them.  Raises StoreError."""
        if self._store is None or name in self.deleted:
            return None, {}
        return self._store.row(name), self._store.states_of_stream(name)

    def evict_idle(self) -> None:
        """Evict the least recently used streams beyond the limit; called right after a commit.  Raises StoreError."""
        if self.evicts:
            self._evict(self._in_memory.pop_surplus())

    def _evict(self, idle: Sequence[str]) -> None:
        for name in idle:
            if name in self._pipeline.table:
                self._pipeline.table.evict(name)
            elif self._stored(name) == (None, {}):
                self._known -= 1  # loaded, but none of its samples reached the pipeline
            for component in self.components.values():
                component.evict(name)
        self.counts.evicted += len(idle)

    # ---- single streams -------------------------------------------------------------------------------------------

    def stream_names(self) -> list[str]:
        """Return all streams, in memory or evicted, sorted.  Raises StoreError."""
        evicted = self._store.names() if self.evicts and self._store is not None else ()
        return sorted({*self._pipeline.streams, *(name for name in evicted if name not in self.deleted)})

    def has_stream(self, name: str) -> bool:
        """Return whether a stream is known, in memory or evicted.  Raises StoreError."""
        return name in self._pipeline.table or (self.evicts and self._stored(name)[0] is not None)

    def reset(self, name: str | None) -> int:
        """Reset one stream, or all, before the next sample, evicted ones too; return how many, 0 if it is unknown.

        Raises StoreError.
        """
        if name is not None:
            if not self.has_stream(name):
                return 0
            if name not in self._pipeline.table:
                self._load(name)
                self._in_memory.use([name])
            return self._pipeline.reset(name)
        count = self._pipeline.reset()
        if self.evicts and self._store is not None:
            self.all_reset_at = self._store.commit_no
            count = max(count, self._store.count())
        return count

    def delete_stream(self, name: str) -> None:
        """Delete a stream here and, with the next commit, in the store; a later sample starts a new one.

        Raises StoreError.
        """
        if self.evicts and (name in self._in_memory or self._stored(name) != (None, {})):
            self._known -= 1
        self._in_memory.drop(name)
        if name in self._pipeline.table:
            self._pipeline.table.evict(name)
        for component in self.components.values():
            component.evict(name)
        self.deleted.add(name)

    def require_room(self, name: str) -> bool:
        """Return whether a stream to import is new here.  Raises StateError if it is one too many, StoreError."""
        if not self.evicts:
            new, count = name not in self._pipeline.table, len(self._pipeline.streams)
            if new and count >= self.policy.max_streams:
                raise StateError(
                    f"stream {name}: expected at most run.max_streams = {self.policy.max_streams} streams, "
                    f"got {count} and this one; raise it"
                )
            return new
        new = name not in self._in_memory and self._stored(name) == (None, {})
        if new and self._known >= self.policy.max_stored_streams:
            raise StateError(
                f"stream {name}: expected at most run.max_stored_streams = {self.policy.max_stored_streams} streams, "
                f"got {self._known} and this one; raise it, or forget streams"
            )
        return new

    def replace_stream(self, name: str, *, new: bool) -> None:
        """Note that an import puts a stream into memory in place of the stored one; ``new``: it was unknown before."""
        self.deleted.add(name)
        self._known += new
        self._in_memory.use([name])

    def is_in_memory(self, name: str) -> bool:
        """Return whether a stream is in memory."""
        return not self.evicts or name in self._in_memory


def _without(batch: SampleBatch, streams: Collection[str]) -> SampleBatch:
    """Return the batch without rows of these streams, which count as rejected by the stream limit."""
    out: Mask = np.array([name in streams for name in batch.stream_names], np.bool_)[batch.stream_index]
    return batch.rejecting(out, DropReason.STREAM_LIMIT)
