"""Standard input: lines, as they come."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Sequence

from stream_gru.errors import ConfigError, EndOfInput, SourceUnavailable
from stream_gru.sources.header import completed_header
from stream_gru.types import Position, RawMessage, SourceHealth

_MAX_LINE_BYTES = 1024 * 1024


class StdinSource:
    """Hands on whole lines; with ``header`` the first line is kept as the header of all messages.

    The header waits for the line after it, which tells whether it is complete.  A header that nothing follows is a
    message without payload at the end, so that its columns are checked.
    """

    def __init__(
        self,
        header: bool,
        descriptor: int | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
        name: str = "stdin",
    ) -> None:
        self._name = name
        self._descriptor, self._wall_ns = descriptor, wall_ns
        self._wants_header = header
        self._header = self._held = b""
        self._rest = b""
        self._ended = False

    def open(self, position: Position | None) -> None:
        """Take the descriptor of standard input, unless another was given.  Raises ConfigError when it is closed."""
        if self._descriptor is None:
            try:
                self._descriptor = sys.stdin.fileno()
            except (AttributeError, OSError, ValueError) as error:  # closed, or replaced by something without one
                raise ConfigError(
                    "standard input: expected lines, got none: it is closed; start with < FILE or in a pipe"
                ) from error

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return the lines that are there, waiting at most ``timeout_s`` seconds.  Raises EndOfInput at the end."""
        if self._ended:
            raise EndOfInput
        descriptor = self._descriptor
        if descriptor is None:
            raise SourceUnavailable("standard input: not open")
        if not select.select([descriptor], [], [], timeout_s)[0]:
            return []
        data = os.read(descriptor, max(4096, 64 * limit))
        arrival_ns = self._wall_ns()
        self._ended = not data
        lines = self._whole_lines(data)
        unseen = self._wants_header  # nobody has looked at the header yet
        if self._wants_header:
            lines = self._after_header(lines)
        known = unseen and not self._wants_header
        return [RawMessage(lines, "stdin", self._header, arrival_ns, source=self._name)] if lines or known else []

    def commit(self, position: Position) -> None:
        """A pipe has no acknowledgement."""

    def close(self) -> None:
        """Standard input belongs to the caller."""

    def health(self) -> SourceHealth:
        """A pipe is there until its end."""
        return SourceHealth(connected=not self._ended)

    def _after_header(self, lines: bytes) -> bytes:
        """Keep lines until the one after the header is there; then set the header and return the lines after it."""
        self._held += lines
        header, _, rest = self._held.partition(b"\n")
        if not self._held or not (b"\n" in rest or self._ended):
            return b""
        self._header = completed_header(header, rest.partition(b"\n")[0])
        self._held, self._wants_header = b"", False
        return rest

    def _whole_lines(self, data: bytes) -> bytes:
        """Return what ends with a line end (or the input's end); a line beyond the limit is cut."""
        cut = len(data) if self._ended else data.rfind(b"\n") + 1
        if not cut and not self._ended:
            self._rest = (self._rest + data)[:_MAX_LINE_BYTES]
            return b""
        lines, self._rest = self._rest + data[:cut], data[cut:]
        return lines
