"""The keeper: what is durable of a running daemon, and how it comes back after a stop, a crash or a kill.

    recover:  lock ─▶ check ─▶ states ─▶ memories ─▶ outputs cut back ─▶ inputs at their positions
    commit:   flush outputs ─▶ one transaction ─▶ release outputs ─▶ acknowledge inputs ─▶ evict who is idle

A transactional outbox, and acknowledgement behind the commit.  A failure in between ends the daemon: nothing is known
then of what the disk holds, and the inputs come again.

Decision: eviction happens only behind a commit, when every row is written; so nothing is ever parked in between.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from stream_gru.durable import Mark, Receipts, Written
from stream_gru.errors import StateError
from stream_gru.keeping.residents import Residents
from stream_gru.keeping.returning import KeptCounts, Returning
from stream_gru.keeping.transfer import Exported, exported, exported_from, require_same_model
from stream_gru.pipeline import Pipeline
from stream_gru.protocols import Receipted, Remembering, Sink, Source
from stream_gru.store.store import Changes, Store
from stream_gru.stored_form import StoredForm
from stream_gru.types import DropReason, Position, SampleBatch

log = logging.getLogger(__name__)

_ALL_RESET = "all_reset_at"  # number of the commit behind which a reset of all streams was asked for


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


class Keeper:
    """Keeps one pipeline and the parts beside it.  All of it belongs to the thread of the loop.

    ``store`` None: nothing outlives the process, the commit is the same but for the transaction.  ``parts``: those that
    remember something of streams, by a name that stays; ``shared``: those that remember something else.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        store: Store | None = None,
        parts: Mapping[str, Remembering] | None = None,
        shared: Mapping[str, Remembering] | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.store = store
        self.parts, self.shared = dict(parts or {}), dict(shared or {})
        self.counts = KeptCounts()
        self._pipeline, self._policy = pipeline, policy or Policy()
        self._returning = Returning(pipeline, self.counts, refuse_other_model=self._policy.refuse_other_model)
        self._dropped: list[str] = []
        self._taken_in: list[str] = []
        self._residents = Residents(self._policy.max_streams)
        self._known = 0
        self._marks: dict[str, Mark] = {}
        self._positions: dict[str, Position] = {}
        self._all_reset_at = self._all_reset_stored = -1

    def take_policy(self, policy: Policy) -> None:
        """Go by another policy from now on."""
        evicted, self._policy = self.evicts, policy
        self._returning.refuse_other_model = policy.refuse_other_model
        self._residents.most = policy.max_streams
        if self.store is not None and self.evicts:
            self._known = self.store.count_names()
        if self.store is not None and evicted and not self.evicts:
            self._return_all(self.store)
        self._residents.heard(name for name in self._pipeline.streams if name not in self._residents)

    def drop_part(self, name: str) -> None:
        """What was stored of a part is void, as another part takes its place."""
        self._dropped.append(name)

    @property
    def up(self) -> bool:
        """Whether what is committed is stored."""
        return self.store is not None and self.store.is_open

    @property
    def evicts(self) -> bool:
        """Whether streams make room for each other."""
        return self._policy.evict and self.store is not None

    # ---- recovery -------------------------------------------------------------------------------------------------

    def recover(self, inputs: Mapping[str, Source], sinks: Mapping[str, Sink]) -> dict[str, Position]:
        """Bring everything back, open sinks and sources, and return the positions of the latter.

        Raises StoreError, StateError, and what opening sinks and sources raises.
        """
        if self.store is not None:
            self.store.open()
            self._recover_states(self.store)
            self._recover_memories(self.store)
        for name, sink in sinks.items():
            self.open_sink(name, sink)
        self.give_up_gone(sinks)
        found = {name: self.open_source(name, source) for name, source in inputs.items()}
        return {name: position for name, position in found.items() if position is not None}

    def _recover_states(self, store: Store) -> None:
        self._known = store.count_names()
        self._all_reset_at = self._all_reset_stored = store.number(_ALL_RESET, -1)
        self.counts.damaged += store.moved_aside is not None
        if not store.ended_well:
            log.warning("%s: the last run was killed; going on behind its commit %d", store.path, store.commit_no)
        self._returning.check_models(store.forms())
        newest = self._policy.max_streams if self.evicts else None
        reset = 0
        for stored in store.rows(newest):
            reset += not self._returning.stream(stored, self._all_reset_at)
            self._residents.heard([stored.name])
        if self._pipeline.streams:
            log.info("%s: %d streams go on, %d begin anew", store.path, len(self._pipeline.streams) - reset, reset)

    def _recover_memories(self, store: Store) -> None:
        for name in store.parts():
            if name not in self.parts and name not in self.shared:
                self.drop_part(name)
        for name, part in self.shared.items():
            self._returning.part(name, part, store.memories_of(name))
        if self.evicts:
            for stream in self._pipeline.streams:
                self._returning.memories(stream, self.parts, store.memories(stream))
            return
        for name, part in self.parts.items():
            self._returning.part(name, part, store.memories_of(name))

    def open_sink(self, name: str, sink: Sink) -> None:
        """Open it where the last commit left its outputs.  Raises what `Sink.open` raises."""
        kept = None if self.store is None else self.store.kept(name)
        self._marks.pop(name, None)
        if kept is not None and kept.mark is not None:
            self._marks[name] = kept.mark
        sink.open(kept)

    def give_up_gone(self, names: Container[str]) -> None:
        """Delete what waits for sinks that are no more.  Raises StoreError."""
        for name, waiting in (self.store.outputs_waiting() if self.store is not None else {}).items():
            if name not in names and self.store is not None:
                log.warning("sink %s is gone, with %d outputs that were not confirmed", name, waiting)
                self.store.forget_outputs(name)

    def open_source(self, name: str, source: Source, *, resume: bool = True) -> Position | None:
        """Open it where the last commit left it, or at its beginning; return where.

        Raises what `Source.open` raises.
        """
        found = None if self.store is None or not resume else self.store.positions().get(name)
        if isinstance(source, Receipted) and self.store is not None:
            source.resume(self.store.packets(name))
        source.open(found)
        self._positions.pop(name, None)
        if found is not None:
            self._positions[name] = found
        return found

    # ---- the commit -----------------------------------------------------------------------------------------------

    def commit(self, read: Mapping[str, tuple[Source, Position | None]], sinks: Mapping[str, Sink]) -> None:
        """Make all that was processed durable, then let it out and acknowledge it.

        ``read``: each source with how far it was processed.  Raises StoreError, SinkUnavailable: then nothing is
        acknowledged, and the daemon has to end.
        """
        written = {name: sink.flush() for name, sink in sinks.items()}
        receipts = _receipts(read)
        if self.store is not None:
            changes = self._changes(read, written, receipts)
            if changes:
                self.store.write(changes)
                self.counts.commits += 1
                self._marks.update(changes.marks)
        self._stored()
        for sink in sinks.values():
            sink.committed()
        self._acknowledge(read, receipts)
        if self.evicts:
            self._evict(self._residents.idle())

    def _changes(
        self,
        read: Mapping[str, tuple[Source, Position | None]],
        written: Mapping[str, Written],
        receipts: Mapping[str, Receipts],
    ) -> Changes:
        """All that is not yet in the store."""
        rows = self._pipeline.table.changed_rows()
        parts = (*self.parts.items(), *self.shared.items())
        numbers = {} if self._all_reset_at == self._all_reset_stored else {_ALL_RESET: self._all_reset_at}
        return Changes(
            form=self._pipeline.form.text if rows else "",
            streams=rows,
            memories=[
                (name, key, part.recall(key))
                for name, part in parts
                for key in sorted({*part.changed(), *(self._taken_in if name in self.parts else ())})
            ],
            positions={
                name: at for name, (_, at) in read.items() if at is not None and at != self._positions.get(name)
            },
            receipts={name: one for name, one in receipts.items() if one.forget or one.packets},
            marks={name: one.mark for name, one in written.items() if one.mark not in (None, self._marks.get(name))},
            outgoing={name: one.rows for name, one in written.items() if one.rows},
            answered={name: one.answered for name, one in written.items() if one.answered},
            numbers=numbers,
            dropped=tuple(self._dropped),
        )

    def _stored(self) -> None:
        self._pipeline.table.stored()
        for part in (*self.parts.values(), *self.shared.values()):
            part.stored()
        self._all_reset_stored = self._all_reset_at
        self._dropped.clear()
        self._taken_in.clear()

    def _acknowledge(
        self, read: Mapping[str, tuple[Source, Position | None]], receipts: Mapping[str, Receipts]
    ) -> None:
        for name, (source, position) in read.items():
            said = receipts.get(name)
            if position is not None and (position != self._positions.get(name) or (said is not None and said.forget)):
                source.commit(position)
                self._positions[name] = position

    def end_well(self) -> None:
        """Behind the last commit: the daemon ends because it was told to, or its input has ended."""
        if self.store is not None:
            self.store.end_well()

    def close(self) -> None:
        """Let another process have the store; may be called twice."""
        if self.store is not None:
            self.store.close()

    # ---- streams that make room for each other --------------------------------------------------------------------

    def admit(self, batch: SampleBatch) -> SampleBatch:
        """Make sure that all streams of a batch are in memory; rows of streams too many are rejected.

        Raises StoreError.
        """
        if not self.evicts:
            return batch
        refused = [name for name in batch.streams if name not in self._residents and not self._return(name)]
        self._residents.heard(name for name in batch.streams if name not in refused)
        return _without(batch, refused) if refused else batch

    def _return(self, name: str) -> bool:
        """Bring a stream back that was evicted, or let a new one in; False when there are too many."""
        assert self.store is not None  # noqa: S101 - only with a store are streams evicted
        stored, memories = self.store.row(name), self.store.memories(name)
        if stored is None and not memories:
            if self._known >= self._policy.max_stored:
                return False
            self._known += 1
            return True
        if stored is not None:
            self._returning.stream(stored, self._all_reset_at)
        self._returning.memories(name, self.parts, memories)
        self.counts.restored += 1
        return True

    def _return_all(self, store: Store) -> None:
        """Streams make no room for each other any more: those that were evicted come back, as at a start."""
        remembered = [name for part in self.parts for name in store.memories_of(part)]
        for name in dict.fromkeys((*store.names(), *remembered)):
            if name not in self._residents:
                self._return(name)

    def _evict(self, idle: Sequence[str]) -> None:
        assert self.store is not None  # noqa: S101 - only with a store are streams evicted
        for name in idle:
            if name in self._pipeline.table:
                self._pipeline.table.evict(name)
            elif self.store.row(name) is None and not self.store.memories(name):
                self._known -= 1  # let in, and never heard of: all of its samples were left out
            for part in self.parts.values():
                part.forget(name)
        self.counts.evicted += len(idle)

    def reset(self, name: str | None) -> int:
        """Reset one stream, or all, before the next sample; evicted ones too.  Return how many; 0: unknown.

        Raises StoreError.
        """
        if name is not None:
            if name not in self._pipeline.table and not self._fetch(name):
                return 0
            return self._pipeline.reset(name)
        count = self._pipeline.reset()
        if self.evicts and self.store is not None:
            self._all_reset_at = self.store.commit_no
            count = max(count, self.store.count())
        return count

    def exported(self, name: str) -> Exported | None:
        """A stream as it is now, in memory or evicted; None when it is unknown.  Raises StoreError, StateError."""
        if name not in self._pipeline.table:
            return exported_from(self.store, name) if self.evicts and self.store is not None else None
        memories = {part: found.recall(name) for part, found in self.parts.items()}
        return exported(name, self._pipeline.form, self._pipeline.table.row(name), memories)

    def take_in(self, state: Exported) -> list[str]:
        """Have a stream go on as it was exported, in place of what is known of it; return parts that are not here.

        Raises IncompatibleStateError when it is of another model, StateError when a part cannot read it.
        """
        require_same_model(state, self._pipeline.form)
        name = state.stream
        before = {part: found.recall(name) for part, found in self.parts.items()}
        self._taken_in.append(name)  # parts do not call changed what they were given
        try:
            self._give_memories(name, state.memories)
        except StateError:
            self._give_memories(name, before)
            raise
        self._pipeline.take_back(name, StoredForm.read(state.form), state.row)
        self._pipeline.table.touch(name)
        self._residents.heard([name])
        return sorted(state.memories.keys() - self.parts.keys())

    def _give_memories(self, name: str, memories: Mapping[str, bytes | None]) -> None:
        """Have all parts remember this of a stream, and nothing else.  Raises StateError."""
        for part, found in self.parts.items():
            data = memories.get(part)
            if data is None:
                found.forget(name)
            else:
                found.restore(name, data)

    def knows(self, name: str) -> bool:
        """Whether there is a stream of this name, in memory or evicted.  Raises StoreError."""
        if name in self._pipeline.table:
            return True
        return self.evicts and self.store is not None and self.store.row(name) is not None

    def _fetch(self, name: str) -> bool:
        """Have an evicted stream in memory; False when there is none of this name."""
        if not self.evicts or self.store is None or self.store.row(name) is None:
            return False
        self._return(name)
        self._residents.heard([name])
        return name in self._pipeline.table


def _receipts(read: Mapping[str, tuple[Source, Position | None]]) -> dict[str, Receipts]:
    """What sources say of packets, where they know any."""
    return {
        name: source.receipts(position)
        for name, (source, position) in read.items()
        if isinstance(source, Receipted) and position is not None
    }


def _without(batch: SampleBatch, refused: Iterable[str]) -> SampleBatch:
    """The batch without rows of these streams, which count as beyond the limit."""
    out = np.isin(batch.stream, [batch.streams.index(name) for name in refused])
    rows = int(np.count_nonzero(out))
    rejected = {**batch.rejected, DropReason.STREAM_LIMIT: batch.rejected.get(DropReason.STREAM_LIMIT, 0) + rows}
    return replace(batch.take(~out), rejected=rejected)
