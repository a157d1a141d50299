"""Reports rejected messages.  Their decoder has counted them; here some are logged and all are written to a file.

    batch.rejected ──▶ log: a few lines for each source and reason
                   ╰─▶ dead letters: a bounded file

Decision: rejected messages are acknowledged like all others, or they would be delivered again and again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from stream_gru.core.log_limiter import LogLimiter
from stream_gru.core.types import DropReason, RawMessage, Rejected
from stream_gru.runtime.dead_letter.file import DeadLetterFile

log = logging.getLogger(__name__)

_SHOWN_BYTES = 120
_SHOWN_KEY = 80


class RejectReporter:
    """Logs rejected messages, at most three lines and then one in ten seconds for a source and a reason.

    All of them are written to ``dead_letters``.  Rows that were rejected after decoding (paused streams, rate limits)
    come without a message: they are counted elsewhere and not reported.  ``clock``: monotonic seconds.
    """

    def __init__(
        self, dead_letters: DeadLetterFile | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._dead_letters = dead_letters
        self._limiter: LogLimiter[tuple[str, DropReason]] = LogLimiter(clock)

    def report(self, source: str, rejected: Sequence[Rejected]) -> None:
        """Report what the decoder of a source rejected."""
        if not rejected:
            return
        if self._dead_letters is not None:
            self._dead_letters.write(source, rejected)
        for reason, records, message, line in rejected:
            if message is None:
                continue
            suppressed = self._limiter.allow((source, reason), records)
            if suppressed is not None:
                log.warning(
                    "source %s: rejected as %s: %s%s%s",
                    source,
                    reason.text,
                    _shown(message, line),
                    f"; {records:,} such records in this message" if records > 1 else "",
                    f"; {suppressed:,} more records since the last such line" if suppressed else "",
                )

    def close(self) -> None:
        """Log how many records were not logged, and close the file; may be called twice."""
        for (source, reason), suppressed in self._limiter.drain():
            log.warning("source %s: rejected as %s: %s more records", source, reason.text, f"{suppressed:,}")
        if self._dead_letters is not None:
            self._dead_letters.close()


def _shown(message: RawMessage, line: bytes) -> str:
    """The key of a message and the beginning of its payload or its line, with control characters escaped."""
    key = repr(message.key[:_SHOWN_KEY]) if message.key else "no key"
    data = line or message.payload
    if not data:
        return f"{key}, no payload"
    return f"{key}, {len(data):,} bytes: {repr(data[:_SHOWN_BYTES])[1:]}"
