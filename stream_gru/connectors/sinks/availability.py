"""Presence: of which streams a sink has said that they are there, and of which that they are silent."""

from __future__ import annotations

import threading
from collections import OrderedDict


class Presence:
    """Which streams are online and which are not; any thread may ask.

    Bounded, however many streams come and go: of those offline the ``most_offline`` that went last are remembered, and
    beyond ``most_online`` the one that came online first counts as offline, until it is heard again.
    """

    def __init__(self, most_online: int = 1_000_000, most_offline: int = 100_000) -> None:
        self._most_online, self._most_offline = most_online, most_offline
        self._lock = threading.Lock()
        self._online: OrderedDict[str, None] = OrderedDict()
        self._offline: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            return len(self._online) + len(self._offline)

    def get(self, stream: str) -> bool | None:
        """Whether a stream is online; None for one that is unknown."""
        with self._lock:
            return True if stream in self._online else False if stream in self._offline else None

    def put(self, stream: str, online: bool) -> str:
        """Note how a stream is; return the one that counts as offline now to make room, "" for none."""
        with self._lock:
            self._online.pop(stream, None)
            self._offline.pop(stream, None)
            (self._online if online else self._offline)[stream] = None
            displaced = ""
            if len(self._online) > self._most_online:
                displaced, _ = self._online.popitem(last=False)
                self._offline[displaced] = None
            if len(self._offline) > self._most_offline:
                self._offline.popitem(last=False)
            return displaced

    def items(self) -> list[tuple[str, bool]]:
        """All that are known, each with whether it is online."""
        with self._lock:
            return [*((stream, False) for stream in self._offline), *((stream, True) for stream in self._online)]

    def names(self) -> list[str]:
        """All that are known."""
        return [stream for stream, _ in self.items()]
