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

from stream_gru.core.commit_records import Mark, Receipts, Written
from stream_gru.core.errors import StateError
from stream_gru.core.protocols import Receipted, Remembering, Sink, Source
from stream_gru.core.types import Position
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.row_schema import StoredForm
from stream_gru.runtime.checkpoint.eviction import Crowd, Policy
from stream_gru.runtime.checkpoint.state_export import ALL_RESET, Exported, exported, exported_from, require_same_model
from stream_gru.runtime.checkpoint.store import Changes, Store

__all__ = ["Keeper", "Policy"]

log = logging.getLogger(__name__)

_MODEL = "model_id"  # of the last commit that had rows


class Keeper(Crowd):
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
        super().__init__(pipeline, store, parts, policy or Policy())
        self.shared = dict(shared or {})
        self._dropped: list[str] = []
        self._rewritten: set[str] = set()
        self._marks: dict[str, Mark] = {}
        self._positions: dict[str, Position] = {}
        self._all_reset_stored = -1
        self._model_stored = ""

    def drop_part(self, name: str) -> None:
        """What was stored of a part is void, as another part takes its place."""
        self._dropped.append(name)

    @property
    def up(self) -> bool:
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
        self.give_up_gone(sinks)
        found = {name: self.open_source(name, source) for name, source in inputs.items()}
        return {name: position for name, position in found.items() if position is not None}

    def _recover_states(self, store: Store) -> None:
        self._known = store.count_names()
        self._all_reset_at = self._all_reset_stored = store.number(ALL_RESET, -1)
        self.counts.damaged += store.moved_aside is not None
        if not store.ended_well:
            log.warning("%s: the last run was killed; going on behind its commit %d", store.path, store.commit_no)
        self._model_stored = store.text(_MODEL, "")
        self._returning.check_models(store.forms(), self._model_stored)
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
        if self.store is not None and not resume:
            self.store.forget_position(name)
        found = None if self.store is None else self.store.positions().get(name)
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
        written: Mapping[str, Written],
        receipts: Mapping[str, Receipts],
    ) -> Changes:
        """All that is not yet in the store."""
        rows = self._pipeline.table.changed_rows()
        parts = (*self.parts.items(), *self.shared.items())
        numbers = {} if self._all_reset_at == self._all_reset_stored else {ALL_RESET: self._all_reset_at}
        changes = Changes(
            form=self._pipeline.form.text if rows else "",
            streams=rows,
            memories=[
                (name, key, part.recall(key))
                for name, part in parts
                for key in sorted({*part.changed(), *(self._rewritten if name in self.parts else ())})
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
            forgotten=sorted(self._forgotten),
        )
        model = self._pipeline.manifest.model_id
        return replace(changes, texts={_MODEL: model}) if rows and model != self._model_stored else changes

    def _stored(self) -> None:
        self._pipeline.table.stored()
        for part in (*self.parts.values(), *self.shared.values()):
            part.stored()
        self._all_reset_stored = self._all_reset_at
        for told in (self._dropped, self._rewritten, self._forgotten):
            told.clear()

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

    # ---- streams that go elsewhere, and come from there -------------------------------------------------------------

    def exported(self, name: str) -> Exported | None:
        """A stream as it is now, in memory or evicted; None when it is unknown.  Raises StoreError, StateError."""
        if name not in self._pipeline.table:
            if self.store is None or not self.evicts or name in self._forgotten:
                return None
            return exported_from(self.store, name)
        memories = {part: found.recall(name) for part, found in self.parts.items()}
        return exported(name, self._pipeline.form, self._pipeline.table.row(name), memories)

    def take_in(self, state: Exported) -> list[str]:
        """Have a stream go on as it was exported, in place of what is known of it; return parts that are not here.

        Raises IncompatibleStateError when it is of another model, StateError when a part cannot read it or there are
        too many streams: then nothing is changed.  StoreError.
        """
        require_same_model(state, self._pipeline.form)
        name = state.stream
        new = self._require_room(name)
        before = {part: found.recall(name) for part, found in self.parts.items()}
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
        self._pipeline.restore_stream(name, StoredForm.read(state.form), state.row)
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


def _receipts(read: Mapping[str, tuple[Source, Position | None]]) -> dict[str, Receipts]:
    """What sources say of packets, where they know any."""
    return {
        name: source.receipts(position)
        for name, (source, position) in read.items()
        if isinstance(source, Receipted) and position is not None
    }
