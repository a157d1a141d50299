"""Commands to a running daemon: what may be asked, the queue they wait in, and the gate that holds paused streams.

    HTTP, MQTT ──▶ parse_command ──▶ Commands ──▶ the daemon's loop, between two batches ──▶ Command.reply

Those who ask live in threads of their own; pipeline and gate belong to the loop, which takes commands when it is ready.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from stream_gru.types import STREAM_ID, DropReason, SampleBatch

MAX_COMMAND_BYTES = 4096
_MAX_WAITING = 64


class Action(StrEnum):
    """What may be asked of a stream, or of all."""

    RESET = "reset"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a command; ``streams`` is how many it concerned, ``text`` says it for people."""

    ok: bool
    text: str
    streams: int = 0


@dataclass(frozen=True, slots=True)
class Command:
    """One thing to do: ``stream`` None means all of them.

    ``reply`` is called once, from the thread of the loop; it must neither raise nor wait.
    """

    action: Action
    stream: str | None
    reply: Callable[[Answer], None]


class Commands:
    """Commands that wait for the loop, at most 64; may be used from any thread."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Command] = queue.Queue(_MAX_WAITING)

    def put(self, command: Command) -> bool:
        """Leave a command for the loop; False when too many are waiting (then nobody will answer it)."""
        try:
            self._waiting.put_nowait(command)
        except queue.Full:
            return False
        return True

    def drain(self) -> list[Command]:
        """Return all that wait, oldest first."""
        found: list[Command] = []
        while not self._waiting.empty():
            found.append(self._waiting.get_nowait())
        return found


def parse_command(data: object) -> tuple[Action, str | None]:
    """Read ``{"action": "reset", "stream": "pump-7"}`` or ``{"action": "reset", "all": true}``.

    Returns the action and the stream, None for all.  Raises ValueError, saying what was expected, for anything else.
    """
    if not isinstance(data, dict):
        raise ValueError('expected an object such as {"action": "reset", "stream": "pump-7"}')
    unknown = sorted(str(key) for key in data.keys() - {"action", "stream", "all"})
    if unknown:
        raise ValueError(f"expected the keys action, stream and all, got {unknown[0]!r:.80}")
    action = data.get("action")
    if not isinstance(action, str) or action not in set(Action):
        raise ValueError(f"action: expected {', '.join(Action)}, got {action!r:.80}")
    if ("stream" in data) == ("all" in data):
        raise ValueError('expected one of "stream": "NAME" and "all": true')
    if "all" in data:
        if data["all"] is not True:
            raise ValueError(f"all: expected true, got {data['all']!r:.80}")
        return Action(action), None
    stream = data["stream"]
    if not isinstance(stream, str) or not STREAM_ID.fullmatch(stream):
        raise ValueError(f"stream: expected 1 to 128 of the characters {STREAM_ID.pattern}, got {stream!r:.80}")
    return Action(action), stream


@dataclass(frozen=True, slots=True)
class _Paused:
    """``everyone`` False: ``names`` are paused; True: all are, but for ``names``."""

    everyone: bool = False
    names: frozenset[str] = frozenset()


class Gate:
    """Keeps the samples of paused streams from the pipeline.

    It is changed by the loop only; other threads may read.  A stream that is resumed while all are paused runs, the
    others stay paused, those that are yet to come too.
    """

    def __init__(self) -> None:
        self._paused = _Paused()

    def __contains__(self, stream: str) -> bool:
        paused = self._paused
        return (stream in paused.names) != paused.everyone

    @property
    def everyone(self) -> bool:
        """Whether all streams are paused, but for those that were resumed since."""
        return self._paused.everyone

    @property
    def names(self) -> tuple[str, ...]:
        """The streams that were paused by name, sorted; none while `everyone` is."""
        paused = self._paused
        return () if paused.everyone else tuple(sorted(paused.names))

    @property
    def resumed(self) -> tuple[str, ...]:
        """The streams that were resumed while `everyone` is paused, sorted."""
        paused = self._paused
        return tuple(sorted(paused.names)) if paused.everyone else ()

    def count(self, streams: Iterable[str]) -> int:
        """How many of these streams are paused."""
        paused = self._paused
        return sum((stream in paused.names) != paused.everyone for stream in streams)

    def pause(self, stream: str | None) -> None:
        """Hold one stream, or all."""
        self._change(stream, everyone=True)

    def resume(self, stream: str | None) -> None:
        """Let one stream through, or all."""
        self._change(stream, everyone=False)

    def _change(self, stream: str | None, everyone: bool) -> None:
        paused = self._paused
        if stream is None:
            self._paused = _Paused(everyone)
        elif paused.everyone == everyone:
            self._paused = _Paused(everyone, paused.names - {stream})
        else:
            self._paused = _Paused(paused.everyone, paused.names | {stream})

    def apply(self, batch: SampleBatch) -> SampleBatch:
        """Return the batch without rows of paused streams, which are counted as rejected; costs nothing when none is.

        ``received`` stays what it was.
        """
        if self._paused == _NOBODY:
            return batch
        held = np.array([stream in self for stream in batch.streams], np.bool_)[batch.stream]
        rows = int(np.count_nonzero(held))
        if not rows:
            return batch
        rejected = {**batch.rejected, DropReason.PAUSED: batch.rejected.get(DropReason.PAUSED, 0) + rows}
        return replace(batch.take(~held), rejected=rejected)


_NOBODY = _Paused()
