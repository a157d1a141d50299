"""Whether what comes through a pipe is an input that was read before and is fed again.

The third part of a check is then the beginning of the input itself, compressed: the first byte that is another one
decides, and until then nothing is handed on.
"""

from __future__ import annotations

import zlib
from base64 import b64decode, b64encode
from enum import Enum, auto

from stream_gru.connectors.sources.fingerprint import Trail
from stream_gru.core.types import Position

_BEGINNING_BYTES = 4096


class Verdict(Enum):
    """What is known of an input."""

    OPEN = auto()
    SAME = auto()
    NEW = auto()


class Beginning:
    """Compares bytes that come in portions with the beginning that ``position`` keeps; holds them until it is known.

    Raises ValueError when ``position`` keeps none that can be read.
    """

    def __init__(self, position: Position) -> None:
        self._known = _unpacked(position.fingerprint)
        self.held = b""

    def feed(self, data: bytes) -> Verdict:
        """Take the next portion; what came so far is in ``held``."""
        self.held += data
        length = min(len(self._known), len(self.held))
        if self.held[:length] != self._known[:length]:
            return Verdict.NEW
        return Verdict.SAME if length == len(self._known) else Verdict.OPEN


class PackedBeginning:
    """The beginning of a trail as a check keeps it, made once it is complete."""

    def __init__(self) -> None:
        self._packed, self._length = "", -1

    def of(self, trail: Trail) -> str:
        """At most four KiB."""
        length = min(_BEGINNING_BYTES, len(trail.head))
        if length != self._length:
            self._packed = b64encode(zlib.compress(trail.head[:length])).decode()
            self._length = length
        return self._packed


def _unpacked(check: str) -> bytes:
    try:
        return zlib.decompress(b64decode(check.split(" ")[2], validate=True))
    except (IndexError, zlib.error) as error:
        raise ValueError(check) from error
