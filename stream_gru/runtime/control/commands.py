"""Commands to a running daemon: what can be requested, how it is parsed, the queue to the daemon's loop.

    HTTP, MQTT ──▶ parse_command ──▶ Commands ──▶ CommandExecutor, between two batches ──▶ Command.reply

HTTP and MQTT run on their own threads; the pipeline belongs to the loop, which executes commands when it is ready.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from stream_gru.core.log_limiter import LogLimiter
from stream_gru.core.types import STREAM_ID

log = logging.getLogger(__name__)

MAX_COMMAND_BYTES = 4096
MAX_STATE_BYTES = 4_194_304  # of one imported stream
UNKNOWN = "unknown"
"""Stands for the action of a command that cannot be parsed."""
_MAX_WAITING = 64


class Action(StrEnum):
    """What a command does to one stream or to all."""

    RESET = "reset"
    PAUSE = "pause"
    RESUME = "resume"
    EXPORT = "export"
    IMPORT = "import"
    LIST = "list"
    FORGET = "forget"


MQTT_ACTIONS = (Action.RESET, Action.PAUSE, Action.RESUME)
"""Actions that MQTT accepts too; the others carry a state and are available over HTTP only."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command: ``text`` for people, ``streams`` the number of streams concerned.

    ``state``: JSON of an exported stream, or of the list of all names, if requested.
    """

    ok: bool
    text: str
    streams: int = 0
    state: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return the result as JSON has it; ``state`` only if there is one."""
        result: dict[str, object] = {"ok": self.ok, "text": self.text, "streams": self.streams}
        return {**result, "state": self.state} if self.state else result


@dataclass(frozen=True, slots=True)
class Command:
    """A command for one ``stream``, or with None for all.

    ``reply`` is called once, from the thread of the loop; it must neither raise nor block.  ``state`` is the export to
    import; ``replace`` allows it to replace an existing stream.
    """

    action: Action
    stream: str | None
    reply: Callable[[CommandResult], None]
    state: bytes = b""
    replace: bool = False


class Commands:
    """Queue of at most 64 commands for the loop; may be used from any thread."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Command] = queue.Queue(_MAX_WAITING)

    def put(self, command: Command) -> bool:
        """Add a command; return False if the queue is full: then it will not be executed."""
        try:
            self._waiting.put_nowait(command)
        except queue.Full:
            return False
        return True

    def drain(self) -> list[Command]:
        """Remove and return all commands, oldest first."""
        found: list[Command] = []
        while not self._waiting.empty():
            found.append(self._waiting.get_nowait())
        return found


class RejectedCommands:
    """Counts and logs the commands that one transport rejects; may be used from any thread.

    ``observe`` gets each: the action (`Action` or `UNKNOWN`) and a short reason without secrets; it must neither raise
    nor block.  The log gets at most one line in ten seconds.  ``clock``: monotonic seconds.
    """

    def __init__(
        self, transport: str, observe: Callable[[str, str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport, self._observe = transport, observe
        self._lock = threading.Lock()
        self._limiter: LogLimiter[str] = LogLimiter(clock, burst=1)

    def report(self, action: str, reason: str) -> None:
        """Count a rejected command, and log it unless there was a line a moment ago."""
        self._observe(action, reason)
        with self._lock:
            suppressed = self._limiter.allow(self._transport)
        if suppressed is None:
            return
        more = f" ({suppressed:,} more since the last such line)" if suppressed else ""
        log.warning("commands: %s over %s rejected: %s%s", action, self._transport, reason, more)


def parse_command(data: object, actions: Sequence[Action] = MQTT_ACTIONS) -> tuple[Action, str | None]:
    """Parse ``{"action": "reset", "stream": "pump-7"}`` or ``{"action": "reset", "all": true}``.

    Returns the action and the stream, None for all.  Raises ValueError, which says what was expected.
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
