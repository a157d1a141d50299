"""Complaints that may recur with every message: each is logged once."""

from __future__ import annotations

import logging


class LogOnce:
    """Logs the first line of each key with ``prefix``; at most ``most`` keys, so that it stays small."""

    def __init__(self, log: logging.Logger, prefix: str, *, level: int = logging.WARNING, most: int = 1000) -> None:
        self._log, self._prefix, self._level, self._most = log, prefix, level, most
        self._keys: set[object] = set()

    def __call__(self, key: object, text: str) -> None:
        """Log ``text``, unless a line of this key was logged before."""
        if key in self._keys or len(self._keys) >= self._most:
            return
        self._keys.add(key)
        last = "; further ones of other kinds are not logged" if len(self._keys) == self._most else ""
        self._log.log(self._level, "%s: %s; logged once%s", self._prefix, text, last)
