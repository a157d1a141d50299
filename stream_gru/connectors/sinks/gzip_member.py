"""Gzip data that survives a kill: a member is written piece by piece, and can be ended by another process.

Source: RFC 1951 (an empty last block), RFC 1952 (header and trailer of a member).
"""

from __future__ import annotations

import struct
import zlib

# No name and no time are inside, so that outputs can be compared by their hash.
_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_LAST_BLOCK = b"\x03\x00"
_LEVEL = 6


class GzipMember:
    """One member under way; ``crc32`` and ``size`` are of the uncompressed bytes so far."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._begun = False
        self.crc32 = self.size = 0

    def write(self, data: bytes) -> bytes:
        """Compress; return what came out, perhaps nothing."""
        self.crc32 = zlib.crc32(data, self.crc32)
        self.size += len(data)
        return self._head() + self._deflate.compress(data)

    def sync(self) -> bytes:
        """End on a whole byte: a reader can read everything up to here, and `ending` may follow."""
        return self._head() + self._deflate.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        """End the member; nothing can be written after it."""
        return self._head() + self._deflate.flush(zlib.Z_FINISH) + _trailer(self.crc32, self.size)

    def _head(self) -> bytes:
        begun, self._begun = self._begun, True
        return b"" if begun else _HEADER


def ending(crc32: int, size: int) -> bytes:
    """What makes a member whole behind a `GzipMember.sync` at which it had this checksum and size."""
    return _LAST_BLOCK + _trailer(crc32, size)


def _trailer(crc32: int, size: int) -> bytes:
    return struct.pack("<II", crc32, size & 0xFFFFFFFF)
