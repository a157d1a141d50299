"""Framers: bytes of a port, cut at any place."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Literal

from stream_gru.connectors.sources.framing import CobsFramer, Framer, LineFramer
from stream_gru.core.types import DropReason

_LIMITS = (16, 64, 300, 4096)


class FramerTarget:
    """Lines or COBS frames."""

    words = (b"\n", b"\r\n", b"\r", b"\0", b"\0\0", b"\n\n", b"flow:1", b" ")

    def __init__(self, kind: Literal["lines", "cobs"]) -> None:
        self._kind = kind

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """The same frames for any cuts; no frame contains its end mark or is too long; the buffer is bounded."""
        limit, discard = _LIMITS[variant % 4], bool(variant & 4)
        whole = self._framer(limit, discard)
        frames = [frame for piece in pieces for frame in whole.feed(piece)]
        end = b"\n" if self._kind == "lines" else b"\0"
        for frame in frames:
            assert frame is DropReason.OVERLONG_LINE or (isinstance(frame, bytes) and end not in frame), frame
            assert not isinstance(frame, bytes) or 0 < len(frame) <= limit, "longer than it may be"
        assert len(whole._cutter._rest) <= limit + 1  # type: ignore[attr-defined]
        assert self._in_portions(b"".join(pieces), limit, discard, variant) == frames, "cut in other portions"
        return {"overlong_line" if frame is DropReason.OVERLONG_LINE else "frame" for frame in frames}

    def _framer(self, limit: int, discard: bool) -> Framer:
        return (LineFramer if self._kind == "lines" else CobsFramer)(limit, discard)

    def _in_portions(self, data: bytes, limit: int, discard: bool, variant: int) -> list[bytes | DropReason]:
        framer, chance = self._framer(limit, discard), Random(variant)
        frames: list[bytes | DropReason] = []
        at = 0
        while at < len(data):
            step = chance.choice((1, 2, 7, 64, 5000, 50_000))
            frames += framer.feed(data[at : at + step])
            at += step
        return frames
