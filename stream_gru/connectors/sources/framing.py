"""Framing: cuts a stream of bytes, which may start and end anywhere, into records.

The frames do not depend on how the bytes are cut into portions.  A framer holds at most one frame.
"""

from __future__ import annotations

import logging
from typing import Protocol

from stream_gru.core.types import DropReason

log = logging.getLogger(__name__)


class Framer(Protocol):
    """Cuts bytes into frames."""

    def feed(self, data: bytes) -> list[bytes | DropReason]:
        """Return the frames that ``data`` completes, in order; a reason stands for an unusable frame."""
        ...


class LineFramer:
    r"""Lines that end with LF or CR LF, without their ends; blank lines are skipped.

    ``max_bytes`` bounds a line without its end: a longer one is OVERLONG_LINE once, and skipped.  ``discard_first``:
    skip what comes before the first line end, the rest of a line that began earlier.
    """

    def __init__(self, max_bytes: int, discard_first: bool = True) -> None:
        self._cutter = _Cutter(b"\n", max_bytes + 1, discard_first)  # one more: the CR of a line end
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[bytes | DropReason]:
        """Return the lines that ``data`` completes."""
        return [line for piece in self._cutter.feed(data) if (line := self._line(piece))]

    def _line(self, piece: bytes | None) -> bytes | DropReason:
        if piece is None:
            return DropReason.OVERLONG_LINE
        line = piece.removesuffix(b"\r")
        if len(line) > self._max_bytes:
            return DropReason.OVERLONG_LINE
        return line if line.strip() else b""


class CobsFramer:
    """Frames that end with a zero byte and hold none, as COBS makes them; they are returned encoded.

    Empty frames are skipped.  ``max_bytes`` bounds a frame as it is sent, without its zero: a longer one
    is OVERLONG_LINE once, and skipped.  ``discard_first``: see `LineFramer`.
    """

    def __init__(self, max_bytes: int, discard_first: bool = True) -> None:
        self._cutter = _Cutter(b"\0", max_bytes, discard_first)

    def feed(self, data: bytes) -> list[bytes | DropReason]:
        """Return the frames that ``data`` completes, still encoded."""
        pieces = self._cutter.feed(data)
        return [DropReason.OVERLONG_LINE if piece is None else piece for piece in pieces if piece != b""]


class _Cutter:
    """Cuts at ``end``; a piece longer than ``max_bytes`` is None, as soon as that is known."""

    def __init__(self, end: bytes, max_bytes: int, discard_first: bool) -> None:
        self._end, self._max_bytes = end, max_bytes
        self._rest = b""
        self._discarding = discard_first  # the current piece began earlier
        self._skipping = False  # the current piece was reported as too long

    def feed(self, data: bytes) -> list[bytes | None]:
        *pieces, rest = (self._rest + data).split(self._end)
        found: list[bytes | None] = []
        for piece in pieces:
            if self._skipping:
                pass
            elif len(piece) > self._max_bytes:
                found.append(None)
            elif self._discarding:
                log.debug("%d bytes before the first line end are skipped", len(piece))
            else:
                found.append(piece)
            self._discarding = self._skipping = False
        if self._skipping:
            rest = b""
        elif len(rest) > self._max_bytes:
            found.append(None)
            self._skipping, rest = True, b""
        self._rest = rest
        return found
