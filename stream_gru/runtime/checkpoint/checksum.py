"""Bytes with a checksum: a row that a disk has damaged is recognised, and so is one that stands under a wrong name."""

from __future__ import annotations

import zlib
from typing import Any


def checksum(*parts: str | bytes) -> int:
    """CRC-32 of all parts and of where each ends."""
    value = 0
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        value = zlib.crc32(data, zlib.crc32(len(data).to_bytes(8, "little"), value))
    return value


def whole(data: Any, crc: Any, *owner: str) -> bytes | None:
    """Bytes that are those of which ``crc`` is the `checksum`, with what they belong to before them; else None."""
    return data if isinstance(data, bytes) and crc == checksum(*owner, data) else None
