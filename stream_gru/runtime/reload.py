"""Reload: the next runtime while a daemon runs, with every part kept whose settings are the same.

An unchanged connection or file stays open, with what waits in it.  What is gone is closed; outputs that were not
acknowledged go to the sink that takes its name.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack

from stream_gru.connectors.sinks.encoders import CsvEncoder
from stream_gru.core.errors import ConfigError
from stream_gru.core.protocols import Engine, HandsOver, KeepsSession, Reconfigurable, Sink
from stream_gru.pipeline.alarms import AlarmRule
from stream_gru.pipeline.pipeline import output_spec
from stream_gru.runtime import wiring
from stream_gru.runtime.ingest.ingest import SharedStages
from stream_gru.runtime.resolved_config import ResolvedConfig, SinkSpec, SourceSpec
from stream_gru.runtime.wiring import Input, Runtime, Surroundings

log = logging.getLogger(__name__)


class Reload:
    """One change from ``runtime``, built from ``old``, to the runtime of ``new``.

    `open_sinks` does what can fail while the old runtime continues; `apply` does the rest, right behind a commit.

    Raises ConfigError for a change that needs a restart.
    """

    def __init__(
        self, runtime: Runtime, old: ResolvedConfig, new: ResolvedConfig, engine: Engine, surroundings: Surroundings
    ) -> None:
        self._runtime, self._old, self._new = runtime, old, new
        self._engine, self._surroundings = engine, surroundings
        _require_reloadable(old, new)
        self._sinks = {
            spec.name: runtime.sinks[spec.name] if self._stays(spec) else wiring.build_sink(spec, new)
            for spec in new.sinks
        }
        self._unopened = {spec.name: spec for spec in new.sinks if not self._stays(spec)}

    def _stays(self, spec: SinkSpec) -> bool:
        """Whether a sink stays open.  Raises ConfigError when it is a CSV file whose columns change."""
        old, new = self._old, self._new
        same = spec in old.sinks and old.run.emit == new.run.emit
        if same and spec.config.fixed_columns and _columns(old) != _columns(new):
            raise ConfigError(f"sink {spec.name}: has the columns of the previous model or alarm; expected a new path")
        return same

    def open_sinks(self, undo: ExitStack) -> None:
        """Open new sinks beside the old ones, where both can be open.  Raises what `Sink.open` raises."""
        for name, spec in list(self._unopened.items()):
            if any(spec.config.excludes(old.config) for old in self._old.sinks):
                continue
            self._runtime.checkpointer.open_sink(name, self._sinks[name])
            undo.callback(self._sinks[name].close)
            del self._unopened[name]

    def apply(self) -> tuple[Runtime, int]:
        """Swap the model, then sinks and sources; return the new runtime and how many streams were reset.

        Raises what opening sinks and sources raises, and StoreError: these end the daemon.
        """
        old, new, runtime = self._old, self._new, self._runtime
        pipeline, checkpointer = runtime.pipeline, runtime.checkpointer
        reset = pipeline.swap(
            new.bundle,
            self._engine,
            interval_level=new.run.interval_level,
            interval_adapt_rate=new.run.interval_adapt_rate,
            max_streams=wiring.max_streams(new),
            alarm=AlarmRule.of(new.config.alarm),
        )
        checkpointer.cache.set_policy(wiring.checkpoint_policy(new))
        self._replace_sinks()
        if wiring.joiner_settings(old) != wiring.joiner_settings(new):
            checkpointer.discard_component(wiring.joiner_component(old))
        shared = wiring.build_shared(
            new, checkpointer.cache.load_streams, self._surroundings.pause_filter, (old, runtime.shared)
        )
        inputs = self._inputs(shared)
        for ingest in (ingest for one in inputs for ingest in one.ingests.values()):
            ingest.share(shared, wiring.max_streams(new))
        runtime.rejects.close()
        return wiring.assemble(new, pipeline, checkpointer, inputs, self._sinks, shared), reset

    def _replace_sinks(self) -> None:
        """Close sinks that are gone, hand over their unacknowledged outputs, open the others."""
        checkpointer = self._runtime.checkpointer
        for name, gone in self._runtime.sinks.items():
            heir = self._sinks.get(name)
            if heir is gone:
                continue
            gone.close()
            checkpointer.discard_component(wiring.component_name("throttle", name))
            _hand_over(name, gone, heir)
        for name in self._unopened:
            checkpointer.open_sink(name, self._sinks[name])
        checkpointer.discard_orphaned(self._sinks)

    def _inputs(self, shared: SharedStages) -> tuple[Input, ...]:
        """Keep inputs with the same settings, change subscriptions, close and open the others."""
        before = {spec.name: spec for spec in self._old.sources}
        running = {one.name: one for one in self._runtime.inputs}
        inputs = [
            self._input(spec, running.pop(spec.name, None), before.get(spec.name), shared) for spec in self._new.sources
        ]
        for gone in running.values():
            # A broker would keep messages for a source that never comes back.
            if isinstance(gone.source, KeepsSession):
                gone.source.forget()
            else:
                gone.source.close()
        return tuple(inputs)

    def _input(self, spec: SourceSpec, one: Input | None, was: SourceSpec | None, shared: SharedStages) -> Input:
        checkpointer = self._runtime.checkpointer
        if one is None or was is None:
            return self._opened(self._build(spec, shared), resume=True)
        if not _source_stays(one, was, spec):
            one.source.close()
            ingests, one = one.ingests, self._build(spec, shared)
            one.ingests = ingests
            self._opened(one, resume=_same_position(was, spec))
        if _decodes_differently(was, spec):
            for part in one.ingests[spec.name].stateful_parts():
                checkpointer.discard_component(wiring.component_name(part, spec.name))
            one.ingests = {spec.name: wiring.build_ingest(spec, shared, wiring.max_streams(self._new))}
        return one

    def _build(self, spec: SourceSpec, shared: SharedStages) -> Input:
        return wiring.build_input(spec, self._new, shared, self._surroundings)

    def _opened(self, one: Input, *, resume: bool) -> Input:
        one.position = self._runtime.checkpointer.open_source(one.name, one.source, resume=resume)
        return one


def _require_reloadable(old: ResolvedConfig, new: ResolvedConfig) -> None:
    """Raises ConfigError for a change that a running daemon cannot make."""
    if not old.live:
        raise ConfigError(f"{new.path}: a replay of recordings cannot be reloaded; restart it")
    if old.run.state_dir != new.run.state_dir:
        raise ConfigError(f"{new.path}: run.state_dir: cannot change while the daemon runs; restart it")
    if new.run.on_model_change == "reject" and old.bundle.manifest.model_id != new.bundle.manifest.model_id:
        raise ConfigError(f'{new.path}: run.bundle: is another model, and run.on_model_change = "reject"')
    before = {spec.name: spec.config for spec in old.sources}
    for source in new.sources:
        problem = before.get(source.name, source.config).reload_problem(source.config)
        if problem:
            raise ConfigError(f"{new.path}: source {source.name}: {problem}")
    kinds = {spec.name: type(spec.config) for spec in old.sinks}
    for sink in new.sinks:
        if kinds.get(sink.name, type(sink.config)) is not type(sink.config):
            raise ConfigError(f"{new.path}: sink {sink.name}: has another type than before; give it a new name")


def _same_position(was: SourceSpec, spec: SourceSpec) -> bool:
    """Whether the position of one source means the same for the other."""
    return spec.config.continues(was.config)


def _decodes_differently(was: SourceSpec, spec: SourceSpec) -> bool:
    """Whether the state that was kept of devices is of records of another form."""
    return any(getattr(was, key) != getattr(spec, key) for key in ("format", "fields", "joins_channels"))


def _source_stays(one: Input, was: SourceSpec, spec: SourceSpec) -> bool:
    """Whether a source stays open under its new settings."""
    if was.config == spec.config and was.broker == spec.broker:
        return True
    return isinstance(one.source, Reconfigurable) and was.broker == spec.broker and one.source.update(spec.config)


def _hand_over(name: str, gone: Sink, heir: Sink | None) -> None:
    """Unacknowledged outputs go to the heir; without one they are lost, with a warning."""
    if not isinstance(gone, HandsOver):
        return
    state = gone.handoff()
    if isinstance(heir, HandsOver):
        heir.adopt(state)
    elif state.rows:
        log.warning("sink %s was removed: %d outputs that were not acknowledged are lost", name, len(state.rows))


def _columns(config: ResolvedConfig) -> bytes:
    """The header of a CSV file that a configuration writes."""
    spec = output_spec(config.bundle.manifest, config.run.interval_level)
    return CsvEncoder().header(spec, alarm=bool(AlarmRule.of(config.config.alarm)))
