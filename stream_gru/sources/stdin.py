"""Standard input: lines, as they come."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Sequence

from stream_gru.errors import EndOfInput, SourceUnavailable
from stream_gru.types import Position, RawMessage

_MAX_LINE_BYTES = 1024 * 1024


class StdinSource:
    """Hands on whole lines; with ``header`` the first line is kept as the header of all messages."""

    def __init__(self, header: bool, descriptor: int | None = None, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._descriptor, self._wall_ns = descriptor, wall_ns
        self._wants_header = header
        self._header = b""
        self._rest = b""
        self._ended = False

    def open(self, position: Position | None) -> None:
        """Take the descriptor of standard input, unless another was given.  Raises SourceUnavailable."""
        if self._descriptor is None:
            try:
                self._descriptor = sys.stdin.fileno()
            except (AttributeError, OSError, ValueError) as error:  # closed, or replaced by something without one
                raise SourceUnavailable("standard input: closed") from error

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
        if self._wants_header and lines:
            self._header, _, lines = lines.partition(b"\n")
            self._wants_header = False
        return [RawMessage(lines, "stdin", self._header, arrival_ns)] if lines else []

    def commit(self, position: Position) -> None:
        """A pipe has no acknowledgement."""

    def close(self) -> None:
        """Standard input belongs to the caller."""

    def _whole_lines(self, data: bytes) -> bytes:
        """Return what ends with a line end (or the input's end); a line beyond the limit is cut."""
        cut = len(data) if self._ended else data.rfind(b"\n") + 1
        if not cut and not self._ended:
            self._rest = (self._rest + data)[:_MAX_LINE_BYTES]
            return b""
        lines, self._rest = self._rest + data[:cut], data[cut:]
        return lines
