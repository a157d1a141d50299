"""Log lines of a daemon: on standard error, as a terminal or as the journal of systemd wants them."""

from __future__ import annotations

import logging
import os
import sys

# Priorities of syslog, which the journal reads at the head of a line.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _JournalFormatter(logging.Formatter):
    """``<4>name: message``, every line of it."""

    def format(self, record: logging.LogRecord) -> str:
        """A record with its priority."""
        mark = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


def log_to_stderr(level: str) -> None:
    """Log this level and above; times are left to the journal where it reads them."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_JournalFormatter("%(name)s: %(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
