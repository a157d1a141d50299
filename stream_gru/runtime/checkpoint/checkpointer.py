"""The keeper: what is durable of a running daemon, and how it comes back after a stop, a crash or a kill.

    recover:  lock ─▶ check ─▶ states ─▶ memories ─▶ outputs cut back ─▶ inputs at their positions
    commit:   flush outputs ─▶ one transaction ─▶ release outputs ─▶ acknowledge inputs ─▶ evict who is idle

A transactional outbox, and acknowledgement behind the commit.  A failure in between ends the daemon: nothing is known
then of what the disk holds, and the inputs come again.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from dataclasses import replace

from stream_gru.core.commit_records import FileOffset, FlushResult, ProcessedPackets
from stream_gru.core.errors import StateError
from stream_gru.core.protocols import Redelivering, Sink, Source, Stateful
from stream_gru.core.types import Position
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.runtime.checkpoint.eviction import EvictionCache, Policy
from stream_gru.runtime.checkpoint.state_export import ALL_RESET, Exported, exported, exported_from, require_same_model
from stream_gru.runtime.checkpoint.store import Commit, Store

__all__ = ["Checkpointer", "Policy"]

log = logging.getLogger(__name__)

_MODEL = "model_id"  # of the last commit that had rows


class Checkpointer(EvictionCache):
    """Keeps one pipeline and the parts beside it.  All of it belongs to the thread of the loop.

    ``store`` None: nothing outlives the process, the commit is the same but for the transaction.  ``parts``: those that
    remember something of streams, by a name that stays; ``shared``: those that remember something else.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        store: Store | None = None,
        components: Mapping[str, Stateful] | None = None,
        shared_components: Mapping[str, Stateful] | None = None,
        policy: Policy | None = None,
    ) -> None:
        super().__init__(pipeline, store, components, policy or Policy())
        self.shared_components = dict(shared_components or {})
        self._dropped: list[str] = []
        self._rewritten: set[str] = set()
        self._marks: dict[str, FileOffset] = {}
        self._positions: dict[str, Position] = {}
        self._all_reset_stored = -1
        self._model_stored = ""

    def discard_component(self, name: str) -> None:
        """What was stored of a part is void, as another part takes its place."""
        self._dropped.append(name)

    @property
    def healthy(self) -> bool:
        """Whether what is committed is stored."""
        return self.store is not None and self.store.is_open

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
        self.discard_orphaned(sinks)
        found = {name: self.open_source(name, source) for name, source in inputs.items()}
        return {name: position for name, position in found.items() if position is not None}

    def _recover_states(self, store: Store) -> None:
        self._known = store.count_known()
        self._all_reset_at = self._all_reset_stored = store.number(ALL_RESET, -1)
        self.counts.damaged += store.moved_aside is not None
        if not store.clean_shutdown:
            log.warning("%s: the last run was killed; going on behind its commit %d", store.path, store.commit_no)
        self._model_stored = store.text(_MODEL, "")
        self._returning.check_models(store.schemas(), self._model_stored)
        newest = self._policy.max_streams if self.evicts else None
        reset = 0
        for stored in store.rows(newest):
            reset += not self._returning.stream(stored, self._all_reset_at)
            self._residents.heard([stored.name])
        if self._pipeline.streams:
            log.info("%s: %d streams go on, %d begin anew", store.path, len(self._pipeline.streams) - reset, reset)

    def _recover_memories(self, store: Store) -> None:
        for name in store.components():
            if name not in self.components and name not in self.shared_components:
                self.discard_component(name)
        for name, part in self.shared_components.items():
            self._returning.part(name, part, store.states_of_component(name))
        if self.evicts:
            for stream in self._pipeline.streams:
                self._returning.memories(stream, self.components, store.states_of_stream(stream))
            return
        for name, part in self.components.items():
            self._returning.part(name, part, store.states_of_component(name))

    def open_sink(self, name: str, sink: Sink) -> None:
        """Open it where the last commit left its outputs.  Raises what `Sink.open` raises."""
        kept = None if self.store is None else self.store.sink_checkpoint(name)
        self._marks.pop(name, None)
        if kept is not None and kept.file_offset is not None:
            self._marks[name] = kept.file_offset
        sink.open(kept)

    def discard_orphaned(self, names: Container[str]) -> None:
        """Delete what waits for sinks that are no more.  Raises StoreError."""
        for name, waiting in (self.store.outputs_waiting() if self.store is not None else {}).items():
            if name not in names and self.store is not None:
                log.warning("sink %s is gone, with %d outputs that were not confirmed", name, waiting)
                self.store.delete_outbox(name)

    def open_source(self, name: str, source: Source, *, resume: bool = True) -> Position | None:
        """Open it where the last commit left it, or at its beginning; return where.

        Raises what `Source.open` raises.
        """
        if self.store is not None and not resume:
            self.store.delete_position(name)
        found = None if self.store is None else self.store.positions().get(name)
        if isinstance(source, Redelivering) and self.store is not None:
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
                self._marks.update(changes.file_offsets)
                self._model_stored = changes.texts.get(_MODEL, self._model_stored)
        self._stored()
        for sink in sinks.values():
            sink.committed()
        self._acknowledge(read, receipts)
        if self.evicts:
            self._evict(self._residents.idle())

    def _changes(
        self,
        read: Mapping[str, tuple[Source, Position | None]],
        written: Mapping[str, FlushResult],
        receipts: Mapping[str, ProcessedPackets],
    ) -> Commit:
        """All that is not yet in the store."""
        rows = self._pipeline.table.dirty_rows()
        parts = (*self.components.items(), *self.shared_components.items())
        numbers = {} if self._all_reset_at == self._all_reset_stored else {ALL_RESET: self._all_reset_at}
        changes = Commit(
            schema=self._pipeline.row_schema.text if rows else "",
            streams=rows,
            component_states=[
                (name, key, part.snapshot(key))
                for name, part in parts
                for key in sorted({*part.dirty_keys(), *(self._rewritten if name in self.components else ())})
            ],
            positions={
                name: at for name, (_, at) in read.items() if at is not None and at != self._positions.get(name)
            },
            processed_packets={name: one for name, one in receipts.items() if one.new_session or one.packets},
            file_offsets={
                name: one.file_offset
                for name, one in written.items()
                if one.file_offset not in (None, self._marks.get(name))
            },
            unacked={name: one.unacked for name, one in written.items() if one.unacked},
            acked={name: one.acked for name, one in written.items() if one.acked},
            numbers=numbers,
            discarded_components=tuple(self._dropped),
            deleted_streams=sorted(self._forgotten),
        )
        model = self._pipeline.manifest.model_id
        return replace(changes, texts={_MODEL: model}) if rows and model != self._model_stored else changes

    def _stored(self) -> None:
        self._pipeline.table.mark_clean()
        for part in (*self.components.values(), *self.shared_components.values()):
            part.mark_clean()
        self._all_reset_stored = self._all_reset_at
        for told in (self._dropped, self._rewritten, self._forgotten):
            told.clear()

    def _acknowledge(
        self, read: Mapping[str, tuple[Source, Position | None]], receipts: Mapping[str, ProcessedPackets]
    ) -> None:
        for name, (source, position) in read.items():
            said = receipts.get(name)
            if position is not None and (
                position != self._positions.get(name) or (said is not None and said.new_session)
            ):
                source.commit(position)
                self._positions[name] = position

    def mark_clean_shutdown(self) -> None:
        """Behind the last commit: the daemon ends because it was told to, or its input has ended."""
        if self.store is not None:
            self.store.mark_clean_shutdown()

    def close(self) -> None:
        """Let another process have the store; may be called twice."""
        if self.store is not None:
            self.store.close()

    # ---- streams that go elsewhere, and come from there -------------------------------------------------------------

    def export_stream(self, name: str) -> Exported | None:
        """A stream as it is now, in memory or evicted; None when it is unknown.  Raises StoreError, StateError."""
        if name not in self._pipeline.table:
            if self.store is None or not self.evicts or name in self._forgotten:
                return None
            return exported_from(self.store, name)
        memories = {part: found.snapshot(name) for part, found in self.components.items()}
        return exported(name, self._pipeline.row_schema, self._pipeline.table.row(name), memories)

    def import_stream(self, state: Exported) -> list[str]:
        """Have a stream go on as it was exported, in place of what is known of it; return parts that are not here.

        Raises IncompatibleStateError when it is of another model, StateError when a part cannot read it or there are
        too many streams: then nothing is changed.  StoreError.
        """
        require_same_model(state, self._pipeline.row_schema)
        name = state.stream
        new = self._require_room(name)
        before = {part: found.snapshot(name) for part, found in self.components.items()}
        if not self.evicts or name in self._residents:
            self._rewritten.add(name)  # parts do not call changed what they are given
        try:
            self._give_memories(name, state.memories)
        except StateError:
            self._give_memories(name, before)
            raise
        self._rewritten.add(name)
        self._forgotten.add(name)
        self._known += new
        self._pipeline.restore_stream(name, RowSchema.read(state.form), state.row)
        self._pipeline.table.mark_dirty(name)
        self._residents.heard([name])
        return sorted(state.memories.keys() - self.components.keys())

    def _give_memories(self, name: str, memories: Mapping[str, bytes | None]) -> None:
        """Have all parts remember this of a stream, and nothing else.  Raises StateError."""
        for part, found in self.components.items():
            data = memories.get(part)
            if data is None:
                found.evict(name)
            else:
                found.restore(name, data)


def _receipts(read: Mapping[str, tuple[Source, Position | None]]) -> dict[str, ProcessedPackets]:
    """What sources say of packets, where they know any."""
    return {
        name: source.processed_packets(position)
        for name, (source, position) in read.items()
        if isinstance(source, Redelivering) and position is not None
    }
