"""Carries out commands between two batches; called from the thread of the loop only."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from stream_gru.core.errors import StateError
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.state_export import export_from_json, export_to_json
from stream_gru.runtime.control.commands import Action, Command, CommandResult, Commands, PauseFilter
from stream_gru.runtime.liveness import IdleStreams
from stream_gru.runtime.metrics import Metrics

log = logging.getLogger(__name__)


class CommandExecutor:
    """Carries out the commands that wait in ``commands``."""

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
        """Carry out all waiting commands; each is answered once ``commit`` has made it durable, counted and logged.

        Raises what ``commit`` raises.
        """
        done = [(command, self._run(command)) for command in self._commands.drain()]
        if done:
            commit()
        for command, answer in done:
            if self._metrics is not None:
                self._metrics.observe_command(command.action, well=answer.ok)
            log.info("command %s: %s", command.action, answer.text)
            command.reply(answer)

    def _run(self, command: Command) -> CommandResult:
        checkpointer = self._checkpointer
        if command.action is Action.IMPORT:
            return self._import(command.state, replace=command.replace)
        if command.action is Action.LIST:
            names = checkpointer.cache.stream_names()
            return CommandResult(ok=True, text=f"{len(names)} streams", streams=len(names), state=json.dumps(names))
        if command.stream is not None and not checkpointer.cache.has_stream(command.stream):
            return CommandResult(ok=False, text=f"unknown stream {command.stream!r}", streams=0)
        if command.action is Action.EXPORT:
            return self._export(command.stream)
        if command.action is Action.FORGET:
            return self._forget(command.stream)
        which = "all streams" if command.stream is None else f"stream {command.stream}"
        if command.action is Action.RESET:
            count = checkpointer.cache.reset(command.stream)
            return CommandResult(ok=True, text=f"{which}: reset before the next sample", streams=count)
        if self._pause_filter is None:
            return CommandResult(ok=False, text="this daemon cannot pause streams", streams=0)
        count = len(checkpointer.cache.stream_names()) if command.stream is None else 1
        if command.action is Action.PAUSE:
            self._pause_filter.pause(command.stream)
            return CommandResult(ok=True, text=f"{which}: paused", streams=count)
        self._pause_filter.resume(command.stream)
        return CommandResult(ok=True, text=f"{which}: resumed", streams=count)

    def _export(self, stream: str | None) -> CommandResult:
        if stream is None:
            return CommandResult(ok=False, text="expected one stream", streams=0)
        try:
            state = self._checkpointer.export_stream(stream)
        except StateError as error:
            return CommandResult(ok=False, text=str(error), streams=0)
        if state is None:
            return CommandResult(ok=False, text=f"unknown stream {stream!r}", streams=0)
        exported = export_to_json(state).decode()
        return CommandResult(ok=True, text=f"stream {stream}: exported", streams=1, state=exported)

    def _forget(self, stream: str | None) -> CommandResult:
        if stream is None:
            return CommandResult(ok=False, text="expected one stream", streams=0)
        self._checkpointer.cache.delete_stream(stream)
        if self._idle is not None:
            self._idle.forget(stream)
        return CommandResult(ok=True, text=f"stream {stream}: forgotten", streams=1)

    def _import(self, data: bytes, *, replace: bool) -> CommandResult:
        try:
            state = export_from_json(data)
            if not replace and self._checkpointer.cache.has_stream(state.stream):
                return CommandResult(ok=False, text=f"stream {state.stream}: exists already; use --replace", streams=0)
            missing = self._checkpointer.import_stream(state)
        except StateError as error:
            return CommandResult(ok=False, text=str(error), streams=0)
        left_out = f"; left out, as this daemon has no such part: {', '.join(missing)}" if missing else ""
        return CommandResult(ok=True, text=f"stream {state.stream}: imported{left_out}", streams=1)
