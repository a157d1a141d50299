"""The checkpointer: makes a running daemon's state durable, and restores it after a stop, a crash or a kill.

    recover:  lock ─▶ check ─▶ stream rows ─▶ component states ─▶ open sinks (cut files) ─▶ open sources (at positions)
    commit:   flush sinks ─▶ one transaction ─▶ release outputs ─▶ acknowledge inputs ─▶ evict idle streams

This is a transactional outbox with acknowledgement after the commit.  A failure in between ends the daemon: the content
of the disk is then unknown, and the inputs are read again.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stream_gru.connectors.sinks.file_recovery import recover
from stream_gru.connectors.sinks.throttle import Throttled
from stream_gru.core.commit_records import FileOffset, FlushResult, ProcessedPackets
from stream_gru.core.errors import StateError
from stream_gru.core.protocols import Redelivering, Sink, Source, Stateful, WritesFile
from stream_gru.core.types import Position
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.pipeline.row_schema import RowSchema
from stream_gru.runtime.checkpoint.commit import Commit
from stream_gru.runtime.checkpoint.eviction import EvictionCache, StatePolicy
from stream_gru.runtime.checkpoint.state_export import (
    ALL_RESET,
    StreamExport,
    build_export,
    export_from_store,
    require_same_model,
)
from stream_gru.runtime.checkpoint.store import Store

log = logging.getLogger(__name__)

_MODEL = "model_id"  # of the last commit with rows


class Checkpointer:
    """Checkpoints one pipeline and the components beside it; used by the thread of the loop only.

    ``store``       None: nothing outlives the process, and a commit skips the transaction
    ``components``  those with per-stream state, by their name in the store
    ``shared``      those with other state
    ``cache``       which streams are in memory; loads and evicts them
    """

    def __init__(
        self,
        pipeline: Pipeline,
        store: Store | None = None,
        components: Mapping[str, Stateful] | None = None,
        shared: Mapping[str, Stateful] | None = None,
        policy: StatePolicy | None = None,
    ) -> None:
        self.store = store
        self.shared = shared or {}
        self.cache = EvictionCache(pipeline, store, components or {}, policy or StatePolicy())
        self.counts = self.cache.counts
        self._pipeline = pipeline
        self._discarded: list[str] = []  # components whose stored states the next commit deletes
        self._imported: set[str] = set()  # streams whose component states the next commit writes, changed or not
        self._file_offsets: dict[str, FileOffset] = {}  # as stored, by sink
        self._positions: dict[str, Position] = {}  # as stored, by source
        self._all_reset_stored = -1
        self._model_stored = ""

    @property
    def healthy(self) -> bool:
        """Whether commits reach a store."""
        return self.store is not None and self.store.is_open

    def set_components(self, components: Mapping[str, Stateful], shared: Mapping[str, Stateful]) -> None:
        """Replace the components, by their names in the store."""
        self.cache.components, self.shared = components, shared

    def discard_component(self, name: str) -> None:
        """Delete the stored states of a component with the next commit: another component takes its name."""
        self._discarded.append(name)

    # ---- recovery -------------------------------------------------------------------------------------------------

    def recover(self, sources: Mapping[str, Source], sinks: Mapping[str, Sink]) -> dict[str, Position]:
        """Restore everything, open sinks and sources, and return the positions of the latter.

        Raises StoreError, StateError, and what opening sinks and sources raises.
        """
        if self.store is not None:
            self.store.open()
            self._recover_streams(self.store)
            self._recover_components(self.store)
            self._recover_files(self.store, sinks)
        for name, sink in sinks.items():
            self.open_sink(name, sink)
        self.discard_orphaned(sinks)
        for name in self.store.positions().keys() - sources.keys() if self.store is not None else ():
            log.warning(
                "source %s: no longer configured; what its broker holds for it is not read; give it its name back, "
                "or forget it with `stream-gru state reset CONFIG --source %s`",
                name,
                name,
            )
        found = {name: self.open_source(name, source) for name, source in sources.items()}
        return {name: position for name, position in found.items() if position is not None}

    def _recover_streams(self, store: Store) -> None:
        self.cache.all_reset_at = self._all_reset_stored = store.value(ALL_RESET, -1)
        self.counts.damaged += store.moved_aside is not None
        if store.stale:
            text = "%s: %s; samples that were acknowledged since its last commit, %d, are not sent again"
            log.error(text, store.path, store.stale, store.commit_no)
        if not store.clean_shutdown:
            log.warning("%s: unclean shutdown; resuming from commit %d", store.path, store.commit_no)
        self._model_stored = store.value(_MODEL, "")
        self.cache.restorer.check_models(store.schemas(), self._model_stored)
        reset = self.cache.recover(store)
        if self._pipeline.streams:
            log.info("%s: %d streams resumed, %d reset", store.path, len(self._pipeline.streams) - reset, reset)

    def _recover_components(self, store: Store) -> None:
        restorer, components = self.cache.restorer, self.cache.components
        for name in store.components():
            if name not in components and name not in self.shared:
                self.discard_component(name)
        for name, component in self.shared.items():
            restorer.component(name, component, store.states_of_component(name))
        if self.cache.evicts:
            for stream in self._pipeline.streams:
                restorer.components(stream, components, store.states_of_stream(stream))
            return
        for name, component in components.items():
            restorer.component(name, component, store.states_of_component(name))

    def _recover_files(self, store: Store, sinks: Mapping[str, Sink]) -> None:
        """Cut files that no sink continues, as the configuration changed, back to the last commit; log failures."""
        for name, offset in store.file_offsets().items():
            path = Path(offset.path)
            if _continues(sinks.get(name), offset):
                continue
            try:
                if path.exists():
                    recover(path, offset, max_files=sys.maxsize)
                    log.info("sink %s: %s ends at the last commit; new rows go elsewhere", name, path)
            except (OSError, StateError) as error:
                log.warning("sink %s: %s: cannot be cut back to the last commit: %s", name, path, error)
            store.delete_file_offset(name)

    def open_sink(self, name: str, sink: Sink) -> None:
        """Open a sink where the last commit left its outputs.  Raises what `Sink.open` raises."""
        checkpoint = None if self.store is None else self.store.sink_checkpoint(name)
        self._file_offsets.pop(name, None)
        if checkpoint is not None and checkpoint.file_offset is not None:
            self._file_offsets[name] = checkpoint.file_offset
        sink.open(checkpoint)

    def discard_orphaned(self, sinks: Mapping[str, Sink]) -> None:
        """Delete what is stored of sinks that are no longer configured, or are now of another type.

        Raises StoreError.
        """
        store = self.store
        if store is None:
            return
        for name, offset in store.file_offsets().items():
            if not _continues(sinks.get(name), offset):
                store.delete_file_offset(name)
        for name, waiting in store.outputs_waiting().items():
            sink = _plain(sinks.get(name))
            if sink is None or isinstance(sink, WritesFile):
                why = "no longer configured" if sink is None else "now a file"
                log.warning("sink %s: %s; %d unacknowledged outputs are deleted", name, why, waiting)
                store.delete_outbox(name)

    def open_source(self, name: str, source: Source, *, resume: bool = True) -> Position | None:
        """Open a source at its stored position, or with ``resume`` False at its beginning; return the position.

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
        """Make all processed samples durable, then release their outputs and acknowledge their inputs.

        ``read``: each source with the position up to which it was processed.  Raises StoreError, SinkUnavailable: then
        nothing is acknowledged, and the daemon must end.
        """
        flushed = {name: sink.flush() for name, sink in sinks.items()}
        processed = _processed_packets(read)
        if self.store is not None:
            commit = self._collect(read, flushed, processed)
            if commit:
                self.store.write(commit)
                self.counts.commits += 1
                self._file_offsets.update(commit.file_offsets)
                self._model_stored = commit.texts.get(_MODEL, self._model_stored)
        self._mark_clean()
        for sink in sinks.values():
            sink.committed()
        self._acknowledge(read, processed)
        self.cache.evict_idle()

    def _collect(
        self,
        read: Mapping[str, tuple[Source, Position | None]],
        flushed: Mapping[str, FlushResult],
        processed: Mapping[str, ProcessedPackets],
    ) -> Commit:
        """Return all that is not yet in the store."""
        rows = self._pipeline.table.dirty_rows()
        all_reset_at, components = self.cache.all_reset_at, self.cache.components
        commit = Commit(
            deleted_streams=sorted(self.cache.deleted),
            schema=self._pipeline.row_schema.text if rows else "",
            streams=rows,
            discarded_components=tuple(self._discarded),
            component_states=[
                (name, key, component.snapshot(key))
                for name, component in (*components.items(), *self.shared.items())
                for key in sorted({*component.dirty_keys(), *(self._imported if name in components else ())})
            ],
            positions={
                name: at for name, (_, at) in read.items() if at is not None and at != self._positions.get(name)
            },
            processed_packets={name: one for name, one in processed.items() if one.new_session or one.packets},
            file_offsets={
                name: one.file_offset
                for name, one in flushed.items()
                if one.file_offset is not None and one.file_offset != self._file_offsets.get(name)
            },
            unacked={name: one.unacked for name, one in flushed.items() if one.unacked},
            acked={name: one.acked for name, one in flushed.items() if one.acked},
            numbers={} if all_reset_at == self._all_reset_stored else {ALL_RESET: all_reset_at},
        )
        model = self._pipeline.manifest.model_id
        return replace(commit, texts={_MODEL: model}) if rows and model != self._model_stored else commit

    def _mark_clean(self) -> None:
        self._pipeline.table.mark_clean()
        for component in (*self.cache.components.values(), *self.shared.values()):
            component.mark_clean()
        self._all_reset_stored = self.cache.all_reset_at
        for written in (self._discarded, self._imported, self.cache.deleted):
            written.clear()

    def _acknowledge(
        self, read: Mapping[str, tuple[Source, Position | None]], processed: Mapping[str, ProcessedPackets]
    ) -> None:
        for name, (source, position) in read.items():
            new_session = name in processed and processed[name].new_session
            if position is not None and (position != self._positions.get(name) or new_session):
                source.commit(position)
                self._positions[name] = position

    def mark_clean_shutdown(self) -> None:
        """Record, after the last commit, that the daemon ends on request or at the end of its input."""
        if self.store is not None:
            self.store.mark_clean_shutdown()

    def close(self) -> None:
        """Close the store and release its lock; may be called twice."""
        if self.store is not None:
            self.store.close()

    # ---- export and import of one stream ----------------------------------------------------------------------------

    def export_stream(self, name: str) -> StreamExport | None:
        """Return the current state of a stream, in memory or evicted; None if it is unknown.

        Raises StateError when it is damaged, StoreError.
        """
        if name not in self._pipeline.table:
            if self.store is None or not self.cache.evicts or name in self.cache.deleted:
                return None
            return export_from_store(self.store, name)
        states = {part: component.snapshot(name) for part, component in self.cache.components.items()}
        return build_export(name, self._pipeline.row_schema, self._pipeline.table.row(name), states)

    def import_stream(self, export: StreamExport) -> list[str]:
        """Replace a stream by an exported one; return the components in the export that do not exist here.

        Raises IncompatibleStateError when it belongs to another model, StateError when a component cannot read it or
        there are too many streams: then nothing is changed.  Raises StoreError.
        """
        require_same_model(export, self._pipeline.row_schema)
        name, components = export.stream, self.cache.components
        new = self.cache.require_room(name)
        before = {part: component.snapshot(name) for part, component in components.items()}
        if self.cache.is_in_memory(name):
            self._imported.add(name)  # restoring marks nothing as changed
        try:
            self._restore_components(name, export.components)
        except StateError:
            self._restore_components(name, before)
            raise
        self._imported.add(name)
        self.cache.replace_stream(name, new=new)
        self._pipeline.restore_stream(name, RowSchema.read(export.row_schema), export.row)
        self._pipeline.table.mark_dirty(name)
        return sorted(export.components.keys() - components.keys())

    def _restore_components(self, name: str, states: Mapping[str, bytes | None]) -> None:
        """Set a stream's state in every component; one without a state is evicted.  Raises StateError."""
        for part, component in self.cache.components.items():
            data = states.get(part)
            if data is None:
                component.evict(name)
            else:
                component.restore(name, data)


def _plain(sink: Sink | None) -> Sink | None:
    return sink.sink if isinstance(sink, Throttled) else sink


def _continues(sink: Sink | None, offset: FileOffset) -> bool:
    plain = _plain(sink)
    return isinstance(plain, WritesFile) and plain.continues(offset)


def _processed_packets(read: Mapping[str, tuple[Source, Position | None]]) -> dict[str, ProcessedPackets]:
    """Return the packets that redelivering sources have processed."""
    return {
        name: source.processed_packets(position)
        for name, (source, position) in read.items()
        if isinstance(source, Redelivering) and position is not None
    }
