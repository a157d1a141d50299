"""Commands that never reach the loop: each is counted by who is told, the log gets a line now and then."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

UNKNOWN = "unknown"
_QUIET_S = 10.0


class RejectedCommands:
    """What one door turns away; may be used from any thread.

    ``told`` gets each: the action (`Action`, or `UNKNOWN` where it cannot be read) and a short text without secrets;
    it must neither raise nor wait.  The log gets at most one line in ten seconds, with the number of those in between.
    ``clock``: monotonic seconds.
    """

    def __init__(
        self, door: str, told: Callable[[str, str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._door, self._told, self._clock = door, told, clock
        self._lock = threading.Lock()
        self._quiet_until_s = float("-inf")
        self._unlogged = 0

    def tell(self, action: str, why: str) -> None:
        """Pass on that a command was refused."""
        self._told(action, why)
        with self._lock:
            now_s = self._clock()
            if now_s < self._quiet_until_s:
                self._unlogged += 1
                return
            self._quiet_until_s = now_s + _QUIET_S
            others, self._unlogged = self._unlogged, 0
        more = f" ({others:,} more were refused since the last such line)" if others else ""
        log.warning("commands: %s over %s is refused: %s%s", action, self._door, why, more)
