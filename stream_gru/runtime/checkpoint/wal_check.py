"""Reads the write-ahead log of the database to detect lost commits.

SQLite ends the log at the first incomplete frame and ignores what follows.  After a kill or a power cut that is right:
at most one transaction was not synced.  If more commits follow that end, they were synced and acknowledged, so the log
is damaged and continuing would silently roll the store back.  Source: SQLite, "WAL-mode File Format".
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct(">IIIIIIII")  # magic, version, page size, number of the checkpoint, two salts, two checksums
_FRAME = struct.Struct(">IIIIII")  # page, size of the database after a commit (else 0), two salts, two checksums


def commits_in(path: Path) -> list[int]:
    """Return the numbers of the frames that end a commit, counted from 1; only those with the salt of the header.

    Raises OSError.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return []
    with file:
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return []
        _, _, page_bytes, _, *salt, _, _ = _HEADER.unpack(header)
        if page_bytes not in {2**power for power in range(9, 17)}:
            page_bytes = 4096
        frames = []
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            _, size, *frame_salt, _, _ = _FRAME.unpack(head)
            frames.append((tuple(frame_salt), size))
            file.seek(page_bytes, 1)
    # SQLite reuses the file with a new salt: frames with another salt are left over and no longer valid.
    return [number for number, (frame_salt, size) in enumerate(frames, 1) if frame_salt == tuple(salt) and size]
