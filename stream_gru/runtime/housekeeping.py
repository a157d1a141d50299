"""What a daemon does between two batches: commands, silence, health of sources and sinks, the watchdog.

Nothing here touches samples; all of it is called from the thread of the loop.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping

from stream_gru.core.errors import StateError
from stream_gru.core.protocols import Sink, Source
from stream_gru.core.types import PredictionBatch
from stream_gru.pipeline.pipeline import Pipeline
from stream_gru.runtime.checkpoint.checkpointer import Checkpointer
from stream_gru.runtime.checkpoint.state_export import decoded, encoded
from stream_gru.runtime.control.commands import Action, Command, CommandResult, Commands, PauseFilter
from stream_gru.runtime.liveness import IdleStreams
from stream_gru.runtime.metrics import Metrics
from stream_gru.runtime.sample_rate_check import SampleRateCheck
from stream_gru.runtime.systemd import SystemdNotifier

log = logging.getLogger(__name__)

_REPORT_S = 1.0
_MOST_NAMED = 10  # streams that are named in the log at a time


class Caretaker:
    """Looks after one daemon.  Everything but the pipeline may be absent: a replay needs none of it."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        keeper: Checkpointer | None = None,
        gate: PauseFilter | None = None,
        commands: Commands | None = None,
        silence: IdleStreams | None = None,
        pace: SampleRateCheck | None = None,
        metrics: Metrics | None = None,
        notifier: SystemdNotifier | None = None,
    ) -> None:
        self._pipeline, self._gate, self._commands = pipeline, gate, commands
        self._keeper = keeper or Checkpointer(pipeline)
        self._silence, self.pace, self._metrics = silence, pace, metrics
        self.notifier = notifier or SystemdNotifier({})
        self._reported = float("-inf")
        self._looked = float("inf")
        self._held_up_s = 0.0
        self._told = ""

    def obey(self, commit: Callable[[], None] = lambda: None) -> None:
        """Carry out the commands that have come; each is answered once ``commit`` has made it durable, counted, logged.

        Raises what ``commit`` raises.
        """
        done = [(command, self._carry_out(command)) for command in self._waiting()]
        if done:
            commit()
        for command, answer in done:
            if self._metrics is not None:
                self._metrics.observe_command(command.action, well=answer.ok)
            log.info("command %s: %s", command.action, answer.text)
            command.reply(answer)

    def _waiting(self) -> list[Command]:
        return self._commands.drain() if self._commands is not None else []

    def seen(self, out: PredictionBatch, now_s: float) -> None:
        """These samples have come.  Names of samples that were refused are nobody's streams."""
        if self._silence is not None:
            self._silence.seen([out.stream_names[i] for i in set(out.stream_index.tolist())], now_s - self._held_up_s)
        for stream, seen_s in self.pace.observe(out) if self.pace is not None else ():
            log.warning(
                "stream %s sends every %.3g s, the model was trained for every %.3g s: horizons count its samples",
                stream,
                seen_s,
                self._pipeline.manifest.period_s,
            )

    def look_around(
        self,
        now_s: float,
        wall_s: float,
        sources: Mapping[str, Source],
        sinks: Mapping[str, Sink],
        *,
        held_up: bool = False,
    ) -> None:
        """Once a second look for silent streams and publish how everybody is doing.

        ``held_up``: the loop waits for a sink, and samples for the loop: that time is no silence of theirs.
        """
        if held_up:
            self._held_up_s += max(0.0, now_s - self._looked)
        self._looked = now_s
        if now_s - self._reported < _REPORT_S:
            return
        self._reported = now_s
        fallen = 0 if held_up else self._listen(now_s - self._held_up_s, sinks)
        self._tell_manager()
        if self._metrics is None:
            return
        self._metrics.observe_loop(wall_s)
        counts = self._keeper.counts
        self._metrics.observe_store(self._keeper.healthy, counts.damaged, counts.evicted, counts.restored)
        self._metrics.observe_silence(self._silent, self._paused, fallen)
        for name, source in sources.items():
            self._metrics.observe_source(name, source.health())
        for name, sink in sinks.items():
            self._metrics.observe_sink(name, sink.health())

    def _tell_manager(self) -> None:
        """One line for `systemctl status`, when it has changed."""
        text = f"{len(self._pipeline.table)} streams, {self._silent} silent, {self._paused} paused"
        if text != self._told:
            self.notifier.status(text)
            self._told = text

    def is_silent(self, stream: str) -> bool:
        """Whether nothing comes from a stream any more."""
        return self._silence is not None and self._silence.is_silent(stream)

    @property
    def _silent(self) -> int:
        return 0 if self._silence is None else self._silence.silent

    @property
    def _paused(self) -> int:
        return 0 if self._gate is None else self._gate.count(self._pipeline.streams)

    def _listen(self, now_s: float, sinks: Mapping[str, Sink]) -> int:
        """Tell the log and the sinks which streams have fallen silent and which are back; return how many fell."""
        if self._silence is None:
            return 0
        fallen, back = self._silence.check(now_s)
        for streams, online, words in ((fallen, False, "is silent"), (back, True, "is back")):
            for stream in streams[:_MOST_NAMED]:
                log.warning("stream %s %s", stream, words)
            if len(streams) > _MOST_NAMED:
                log.warning("%d more streams: each %s", len(streams) - _MOST_NAMED, words)
            for stream in streams:
                for sink in sinks.values():
                    tell = getattr(sink, "stream_status", None)
                    if tell is not None:
                        tell(stream, online)
        return len(fallen)

    def _carry_out(self, command: Command) -> CommandResult:
        if command.action is Action.IMPORT:
            return self._take_in(command.state, replace=command.replace)
        if command.action is Action.LIST:
            names = self._keeper.stream_names()
            return CommandResult(ok=True, text=f"{len(names)} streams", streams=len(names), state=json.dumps(names))
        if command.stream is not None and not self._keeper.has_stream(command.stream):
            return CommandResult(ok=False, text=f"unknown stream {command.stream!r}", streams=0)
        n = len(self._pipeline.streams) if command.stream is None else 1
        what = "all streams" if command.stream is None else f"stream {command.stream}"
        if command.action is Action.RESET:
            n = self._keeper.reset(command.stream)
            return CommandResult(ok=True, text=f"{what}: reset before the next sample", streams=n)
        if command.action is Action.EXPORT:
            return self._export(command.stream)
        if command.action is Action.FORGET:
            return self._forget(command.stream)
        if self._gate is None:
            return CommandResult(ok=False, text="this daemon cannot pause streams", streams=0)
        if command.action is Action.PAUSE:
            self._gate.pause(command.stream)
            return CommandResult(ok=True, text=f"{what}: paused", streams=n)
        self._gate.resume(command.stream)
        return CommandResult(ok=True, text=f"{what}: resumed", streams=n)

    def _export(self, stream: str | None) -> CommandResult:
        if stream is None:
            return CommandResult(ok=False, text="expected one stream", streams=0)
        try:
            state = self._keeper.export_stream(stream)
        except StateError as error:
            return CommandResult(ok=False, text=str(error), streams=0)
        if state is None:
            return CommandResult(ok=False, text=f"unknown stream {stream!r}", streams=0)
        return CommandResult(ok=True, text=f"stream {stream}: exported", streams=1, state=encoded(state).decode())

    def _forget(self, stream: str | None) -> CommandResult:
        if stream is None:
            return CommandResult(ok=False, text="expected one stream", streams=0)
        self._keeper.delete_stream(stream)
        if self._silence is not None:
            self._silence.forget(stream)
        return CommandResult(ok=True, text=f"stream {stream}: forgotten", streams=1)

    def _take_in(self, data: bytes, *, replace: bool) -> CommandResult:
        try:
            state = decoded(data)
            if not replace and self._keeper.has_stream(state.stream):
                return CommandResult(
                    ok=False, text=f"stream {state.stream}: is there already; --replace takes its place"
                )
            foreign = self._keeper.import_stream(state)
        except StateError as error:
            return CommandResult(ok=False, text=str(error), streams=0)
        left_out = f"; left out, as no such source is here: {', '.join(foreign)}" if foreign else ""
        return CommandResult(ok=True, text=f"stream {state.stream}: imported{left_out}", streams=1)
