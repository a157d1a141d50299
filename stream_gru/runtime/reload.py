"""Sources and sinks of a running daemon in exchange for those of a new plan.

What has not changed stays as it is: a connection, a file, what waits in it.  What has gone is closed, and what was not
confirmed goes over to the sink that takes its name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stream_gru.config.run_schema import FileSinkConfig, MqttSinkConfig, ReplaySourceConfig, StdinSourceConfig
from stream_gru.connectors.sinks.encode_csv import CsvEncoder
from stream_gru.core.errors import ConfigError
from stream_gru.core.protocols import Sink
from stream_gru.pipeline.pipeline import output_spec
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.daemon import Daemon, Input
from stream_gru.runtime.delivery_guarantees import part_name
from stream_gru.runtime.ingest.ingest import Intake
from stream_gru.runtime.resolved_config import ResolvedConfig, SinkSpec, SourceSpec

log = logging.getLogger(__name__)


class Exchange:
    """One exchange: `open_sinks` does what can fail, then `sinks` and `inputs` do the rest.

    Raises ConfigError for what cannot be exchanged while the daemon runs.
    """

    def __init__(
        self,
        daemon: Daemon,
        keeper: Checkpointer,
        old: ResolvedConfig,
        new: ResolvedConfig,
        build: Callable[[SinkSpec, ResolvedConfig], Sink],
    ) -> None:
        self._daemon, self._keeper, self._old, self._new = daemon, keeper, old, new
        _refuse_other_stdin(old, new)
        _refuse_other_kinds(old, new)
        self._sinks = {one.name: daemon.sinks[one.name] if self._stays(one) else build(one, new) for one in new.sinks}
        self._unopened = {one.name: one for one in new.sinks if not self._stays(one)}

    def _stays(self, planned: SinkSpec) -> bool:
        """Whether a sink goes on as it is.  Raises ConfigError when it is a table of other columns."""
        old, new = self._old, self._new
        same = planned in old.sinks and old.run.emit == new.run.emit
        if same and isinstance(planned.config, MqttSinkConfig):
            return old.bundle.manifest.model_id == new.bundle.manifest.model_id
        path = planned.config.path if isinstance(planned.config, FileSinkConfig) else ""
        if same and ".csv" in Path(path).suffixes and _columns(old) != _columns(new):
            raise ConfigError(f"{path}: holds the columns of the model and alarms before; choose a new file")
        return same

    def open_sinks(self, undo: ExitStack) -> None:
        """Open new sinks beside the old ones, where two can be open.  Raises what `Sink.open` raises."""
        written = {one.config.path for one in self._old.sinks if isinstance(one.config, FileSinkConfig)}
        for name, planned in list(self._unopened.items()):
            # A connection is never made twice, nor a file written by two.
            if isinstance(planned.config, MqttSinkConfig) or getattr(planned.config, "path", None) in written:
                continue
            self._keeper.open_sink(name, self._sinks[name])
            undo.callback(self._sinks[name].close)
            del self._unopened[name]

    def sinks(self) -> dict[str, Sink]:
        """Close what is no longer there, hand over what was not confirmed, open the rest; return all by name."""
        for name in (one.name for one in self._old.sinks):
            gone, heir = self._daemon.sinks[name], self._sinks.get(name)
            if heir is gone:
                continue
            gone.close()
            self._keeper.discard_component(part_name("throttle", name))
            _hand_over(name, gone, heir)
        for name in self._unopened:
            self._keeper.open_sink(name, self._sinks[name])
        self._keeper.discard_orphaned(self._sinks)
        return self._sinks

    def inputs(
        self, build: Callable[[SourceSpec, ResolvedConfig], Input], intake: Callable[[SourceSpec], Intake]
    ) -> list[Input]:
        """Keep inputs whose tables are the same, change subscriptions, close and open the others."""
        before = {one.name: one for one in self._old.sources}
        going = {one.name: one for one in self._daemon.inputs}
        inputs = []
        for planned in self._new.sources:
            one, was = going.pop(planned.name, None), before.get(planned.name)
            if one is None or was is None:
                one = self._opened(build(planned, self._new), resume=True)
            elif not _goes_on(one, was, planned):
                one.source.close()
                successor = build(planned, self._new)
                successor.intakes = one.intakes
                one = self._opened(successor, resume=_is_the_same(was, planned))
            if was is not None and _reads_otherwise(was, planned):
                for part in one.intakes[planned.name].remembering():
                    self._keeper.discard_component(part_name(part, one.name))
                one.intakes = {planned.name: intake(planned)}
            inputs.append(one)
        for gone in going.values():
            # A broker would keep messages for a source that never comes back.
            getattr(gone.source, "forget", gone.source.close)()
        return inputs

    def _opened(self, one: Input, *, resume: bool) -> Input:
        one.position = self._keeper.open_source(one.name, one.source, resume=resume)
        return one


def _is_the_same(was: SourceSpec, planned: SourceSpec) -> bool:
    """Whether the position of one table means the same for the other."""
    files = [one.config.files if isinstance(one.config, ReplaySourceConfig) else None for one in (was, planned)]
    return planned.numbered or files[0] == files[1]


def _reads_otherwise(was: SourceSpec, planned: SourceSpec) -> bool:
    """Whether what was remembered of devices is of another form of their records."""
    return any(getattr(was, key) != getattr(planned, key) for key in ("format", "fields", "assembled"))


def _hand_over(name: str, gone: Sink, heir: Any) -> None:
    """What was not confirmed goes over to the heir, or is told."""
    left = gone.left() if hasattr(gone, "left") else []
    if heir is not None and hasattr(gone, "left"):
        heir.take_over(left)
    elif left:
        log.warning("sink %s is gone, with %d outputs that were not confirmed", name, len(left))


def _goes_on(one: Input, was: SourceSpec, planned: SourceSpec) -> bool:
    """Whether a source stays open under its new table."""
    if was.config == planned.config and was.broker == planned.broker:
        return True
    update = getattr(one.source, "update", None)
    return update is not None and was.broker == planned.broker and bool(update(planned.config))


def _refuse_other_stdin(old: ResolvedConfig, new: ResolvedConfig) -> None:
    """What was read of standard input does not come again for another table.  Raises ConfigError."""
    before = {one.name: one.config for one in old.sources}
    for one in new.sources:
        was = before.get(one.name, one.config)
        if isinstance(was, StdinSourceConfig) and was != one.config:
            raise ConfigError(f"{new.path}: source {one.name}: standard input cannot be read in another way; restart")


def _refuse_other_kinds(old: ResolvedConfig, new: ResolvedConfig) -> None:
    """What waits for a broker cannot go to a server of another kind.  Raises ConfigError."""
    before = {one.name: type(one.config) for one in old.sinks}
    for one in new.sinks:
        if before.get(one.name, type(one.config)) is not type(one.config):
            raise ConfigError(f"{new.path}: sink {one.name}: is of another type now; give it a name of its own")


def _columns(plan: ResolvedConfig) -> bytes:
    """The first line of a table that a plan writes."""
    alarm = plan.config.alarm
    spec = output_spec(plan.bundle.manifest, plan.run.interval_level)
    return CsvEncoder().header(spec, alarm=bool(alarm.classes or alarm.consecutive_misses))
