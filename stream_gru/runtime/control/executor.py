"""Executes commands between two batches, and drops the samples of paused streams.

Used by the thread of the loop only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from stream_gru.core.errors import StateError
from stream_gru.core.keyed_state import KeyedState, corrupt_state
from stream_gru.core.types import STREAM_ID, DropReason, SampleBatch
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.state_export import export_from_json, export_to_json
from stream_gru.runtime.control.commands import Action, Command, CommandResult, Commands
from stream_gru.runtime.metrics import Metrics
from stream_gru.runtime.stream_checks import IdleStreams

log = logging.getLogger(__name__)


class CommandExecutor:
    """Executes the commands that wait in ``commands``.

    ``pause_filter`` None: streams cannot be paused.  ``idle``: forgets deleted streams too.
    """

    def __init__(
        self,
        commands: Commands,
        checkpointer: Checkpointer,
        *,
        pause_filter: PauseFilter | None = None,
        idle: IdleStreams | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self._commands, self._checkpointer = commands, checkpointer
        self._pause_filter, self._idle, self._metrics = pause_filter, idle, metrics

    def run_pending(self, commit: Callable[[], None]) -> None:
        """Execute all waiting commands; reply, count and log after ``commit`` has made them durable.

        Raises what ``commit`` raises.
        """
        done = [(command, self._run(command)) for command in self._commands.drain()]
        if done:
            commit()
        for command, result in done:
            if self._metrics is not None:
                self._metrics.observe_command(command.action, ok=result.ok)
            log.info("command %s: %s", command.action, result.text)
            command.reply(result)

    def _run(self, command: Command) -> CommandResult:
        cache = self._checkpointer.cache
        if command.action is Action.IMPORT:
            return self._import(command.state, replace=command.replace)
        if command.action is Action.LIST:
            names = cache.stream_names()
            return CommandResult(True, f"{len(names)} streams", len(names), json.dumps(names))
        if command.stream is not None and not cache.has_stream(command.stream):
            return CommandResult(False, f"unknown stream {command.stream!r}")
        if command.action is Action.EXPORT:
            return self._export(command.stream)
        if command.action is Action.FORGET:
            return self._forget(command.stream)
        which = "all streams" if command.stream is None else f"stream {command.stream}"
        if command.action is Action.RESET:
            return CommandResult(True, f"{which}: reset before the next sample", cache.reset(command.stream))
        if self._pause_filter is None:
            return CommandResult(False, "this daemon cannot pause streams")
        count = len(cache.stream_names()) if command.stream is None else 1
        if command.action is Action.PAUSE:
            self._pause_filter.pause(command.stream)
            return CommandResult(True, f"{which}: paused", count)
        self._pause_filter.resume(command.stream)
        return CommandResult(True, f"{which}: resumed", count)

    def _export(self, stream: str | None) -> CommandResult:
        if stream is None:
            return CommandResult(False, "expected one stream")
        try:
            export = self._checkpointer.export_stream(stream)
        except StateError as error:
            return CommandResult(False, str(error))
        if export is None:
            return CommandResult(False, f"unknown stream {stream!r}")
        return CommandResult(True, f"stream {stream}: exported", 1, export_to_json(export).decode())

    def _forget(self, stream: str | None) -> CommandResult:
        if stream is None:
            return CommandResult(False, "expected one stream")
        self._checkpointer.cache.delete_stream(stream)
        if self._idle is not None:
            self._idle.forget(stream)
        return CommandResult(True, f"stream {stream}: forgotten", 1)

    def _import(self, data: bytes, *, replace: bool) -> CommandResult:
        try:
            export = export_from_json(data)
            if not replace and self._checkpointer.cache.has_stream(export.stream):
                return CommandResult(False, f"stream {export.stream}: exists already; use --replace")
            missing = self._checkpointer.import_stream(export)
        except StateError as error:
            return CommandResult(False, str(error))
        skipped = f"; skipped components that do not exist here: {', '.join(missing)}" if missing else ""
        return CommandResult(True, f"stream {export.stream}: imported{skipped}", 1)


_MAX_NAMES = 1_000_000


class _Paused(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """``all_paused`` False: ``names`` are paused; True: all streams but ``names``."""

    all_paused: bool = False
    names: Annotated[frozenset[str], Meta(max_length=_MAX_NAMES)] = frozenset()


_NONE = _Paused()


class _PausedState(KeyedState[_Paused]):
    """One record for all streams, under the key "" ; none while nothing is paused."""

    def __init__(self) -> None:
        super().__init__(_Paused, "paused streams")

    def _load(self, key: str, data: bytes) -> _Paused | None:
        record = super()._load(key, data)
        if key or record is None or not all(map(STREAM_ID.fullmatch, record.names)):
            raise corrupt_state("paused streams", "expected names of streams")
        return record


class PauseFilter:
    """Rejects the samples of paused streams.

    Only the loop changes it; other threads may read.  While all streams are paused, a resumed stream runs and the
    others stay paused, new ones too.  ``state`` keeps pauses across restarts.
    """

    def __init__(self) -> None:
        self.state: KeyedState[_Paused] = _PausedState()

    def __contains__(self, stream: str) -> bool:
        paused = self._paused
        return (stream in paused.names) != paused.all_paused

    @property
    def _paused(self) -> _Paused:
        return self.state.get("") or _NONE

    @property
    def all_paused(self) -> bool:
        """Whether all streams are paused, except those in `resumed`."""
        return self._paused.all_paused

    @property
    def names(self) -> tuple[str, ...]:
        """The streams paused by name, sorted; empty while `all_paused`."""
        paused = self._paused
        return () if paused.all_paused else tuple(sorted(paused.names))

    @property
    def resumed(self) -> tuple[str, ...]:
        """The streams resumed while `all_paused`, sorted."""
        paused = self._paused
        return tuple(sorted(paused.names)) if paused.all_paused else ()

    def count(self, streams: Iterable[str]) -> int:
        """Return how many of these streams are paused."""
        paused = self._paused
        if paused == _NONE:
            return 0
        return sum((stream in paused.names) != paused.all_paused for stream in streams)

    def pause(self, stream: str | None) -> None:
        """Pause one stream, or with None all."""
        self._set(stream, paused=True)

    def resume(self, stream: str | None) -> None:
        """Resume one stream, or with None all."""
        self._set(stream, paused=False)

    def _set(self, stream: str | None, *, paused: bool) -> None:
        before = self._paused
        if stream is None:
            after = _Paused(paused)
        elif before.all_paused == paused:
            after = _Paused(paused, before.names - {stream})
        else:
            after = _Paused(before.all_paused, before.names | {stream})
        if after == _NONE:
            self.state.delete("")
        elif after != before:
            self.state.put("", after)

    def apply(self, batch: SampleBatch) -> SampleBatch:
        """Return the batch with rows of paused streams rejected; the batch itself if there are none."""
        if self._paused == _NONE:
            return batch
        return batch.rejecting(
            np.array([stream in self for stream in batch.stream_names], np.bool_)[batch.stream_index], DropReason.PAUSED
        )
