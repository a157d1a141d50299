"""Lines of the log about what was refused: a few for each source and reason, and how many were left out."""

from __future__ import annotations

import logging
from collections.abc import Callable

from stream_gru.core.types import DropReason, RawMessage
from stream_gru.runtime.dead_letter.reject_search import Culprit

log = logging.getLogger(__name__)

_LINES = 3
_LINE_EVERY_S = 10.0
_SHOWN_BYTES = 120
_SHOWN_KEY = 80


class _Quota:
    """``lines`` that may be written as of ``seen``, seconds; ``left_out`` since the last one."""

    __slots__ = ("left_out", "lines", "seen")

    def __init__(self, seen: float) -> None:
        self.lines, self.seen, self.left_out = float(_LINES), seen, 0


class Lines:
    """Writes three lines at once at most for a source and a reason, then one in ten seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._quotas: dict[tuple[str, DropReason], _Quota] = {}

    def open(self, source: str, reason: DropReason) -> bool:
        """Whether a line may be written now."""
        now = self._clock()
        quota = self._quotas.get((source, reason))
        if quota is None:
            quota = self._quotas[source, reason] = _Quota(now)
        quota.lines = min(_LINES, quota.lines + (now - quota.seen) / _LINE_EVERY_S)
        quota.seen = now
        return quota.lines >= 1.0

    def tell(self, source: str, culprit: Culprit) -> bool:
        """Write a line where one may be written; return whether it was."""
        if not self.open(source, culprit.reason):
            return False
        quota = self._quotas[source, culprit.reason]
        quota.lines -= 1.0
        more = f"; {quota.left_out:,} more since the last such line" if quota.left_out else ""
        quota.left_out = 0
        log.warning("source %s: refused as %s: %s%s", source, culprit.reason.text, _shown(culprit.message), more)
        return True

    def leave_out(self, source: str, reason: DropReason, n: int) -> None:
        """Count refused samples of which nothing is said now."""
        self.open(source, reason)
        self._quotas[source, reason].left_out += n

    def close(self) -> None:
        """Say what was left out and would be said in the next line."""
        for (source, reason), quota in self._quotas.items():
            if quota.left_out:
                log.warning("source %s: %s more were refused as %s", source, f"{quota.left_out:,}", reason.text)
                quota.left_out = 0


def _shown(message: RawMessage) -> str:
    """Whose a message is and how it begins, in characters that no terminal obeys."""
    whose = repr(message.key[:_SHOWN_KEY]) if message.key else "of no stream"
    if not message.payload:
        return f"{whose}, no payload"
    beginning = repr(message.payload[:_SHOWN_BYTES])[1:]
    return f"{whose}, {len(message.payload):,} bytes: {beginning}"
