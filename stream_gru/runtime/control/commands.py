"""Commands to a running daemon: what may be asked, the queue they wait in, and the gate that holds paused streams.

    HTTP, MQTT ──▶ parse_command ──▶ Commands ──▶ the daemon's loop, between two batches ──▶ Command.reply

Those who ask live in threads of their own; pipeline and gate belong to the loop, which takes commands when it is ready.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from stream_gru.core.keyed_state import corrupt_state, decode, encode
from stream_gru.core.types import STREAM_ID, DropReason, SampleBatch

MAX_COMMAND_BYTES = 4096
MAX_STATE_BYTES = 4_194_304  # of one stream that is brought from elsewhere
_MAX_WAITING = 64
_MOST_NAMES = 1_000_000


class Action(StrEnum):
    """What may be asked of a stream, or of all."""

    RESET = "reset"
    PAUSE = "pause"
    RESUME = "resume"
    EXPORT = "export"
    IMPORT = "import"
    LIST = "list"
    FORGET = "forget"


MQTT_ACTIONS = (Action.RESET, Action.PAUSE, Action.RESUME)
"""What may be asked over MQTT too; the others carry a state, and go over HTTP alone."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What became of a command; ``streams`` is how many it concerned, ``text`` says it for people.

    ``state``: JSON of an exported stream, or of the names of all, where that was asked for.
    """

    ok: bool
    text: str
    streams: int = 0
    state: str = ""

    def as_dict(self) -> dict[str, object]:
        """As JSON has it: with a state only where one was asked for."""
        said: dict[str, object] = {"ok": self.ok, "text": self.text, "streams": self.streams}
        return {**said, "state": self.state} if self.state else said


@dataclass(frozen=True, slots=True)
class Command:
    """One thing to do: ``stream`` None means all of them; ``state`` is what shall be imported, ``replace``: also in the
    place of a stream that is here.

    ``reply`` is called once, from the thread of the loop; it must neither raise nor wait.
    """

    action: Action
    stream: str | None
    reply: Callable[[CommandResult], None]
    state: bytes = b""
    replace: bool = False


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


def parse_command(data: object, actions: Sequence[Action] = MQTT_ACTIONS) -> tuple[Action, str | None]:
    """Read ``{"action": "reset", "stream": "pump-7"}`` or ``{"action": "reset", "all": true}``.

    Returns the action and the stream, None for all.  Raises ValueError, saying what was expected, for anything else.
    """
    if not isinstance(data, dict):
        raise ValueError('expected an object such as {"action": "reset", "stream": "pump-7"}')
    unknown = sorted(str(key) for key in data.keys() - {"action", "stream", "all"})
    if unknown:
        raise ValueError(f"expected the keys action, stream and all, got {unknown[0]!r:.80}")
    action = data.get("action")
    if not isinstance(action, str) or action not in set(actions):
        raise ValueError(f"action: expected {', '.join(actions)}, got {action!r:.80}")
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


class _Form(Struct, array_like=True, forbid_unknown_fields=True):
    """What is paused as it is stored, names sorted."""

    everyone: bool
    names: Annotated[list[str], Meta(max_length=_MOST_NAMES)]


class PauseFilter:
    """Keeps the samples of paused streams from the pipeline.

    It is changed by the loop only; other threads may read.  A stream that is resumed while all are paused runs, the
    others stay paused, those that are yet to come too.  What was paused stays so over a restart: the gate fulfils
    `Stateful`, all of it under the name "".
    """

    def __init__(self) -> None:
        self._paused = self._stored = _Paused()

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
        if paused == _NOBODY:
            return 0
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
        held = np.array([stream in self for stream in batch.stream_names], np.bool_)[batch.stream_index]
        return batch.rejecting(held, DropReason.PAUSED)

    def dirty_keys(self) -> tuple[str, ...]:
        """The one name "" when something else is paused than at the last `mark_clean`."""
        return () if self._paused == self._stored else ("",)

    def mark_clean(self) -> None:
        """What has changed was written down."""
        self._stored = self._paused

    def snapshot(self, name: str) -> bytes | None:
        """What is paused; None when nothing is, and for any name but ""."""
        paused = self._paused
        if name or paused == _NOBODY:
            return None
        return encode(_Form(paused.everyone, sorted(paused.names)))

    def restore(self, name: str, data: bytes) -> None:
        """Pause what was paused.  Raises StateError."""
        form = decode(data, _Form, "paused streams")
        if name or not all(map(STREAM_ID.fullmatch, form.names)):
            raise corrupt_state("paused streams", "expected names of streams")
        self._paused = self._stored = _Paused(form.everyone, frozenset(form.names))

    def evict(self, name: str) -> None:
        """Let all through, where ``name`` is ""; quiet for any other."""
        if not name:
            self._paused = self._stored = _NOBODY


_NOBODY = _Paused()
