"""The write-ahead log of the database, as far as it says that it was damaged.

SQLite takes the first frame that is not whole for the end of the log, and goes on without what stands behind it.  That
is right after a kill or a power cut: these leave at most one transaction that was not synced.  Where more commits stand
behind the end, synced and acknowledged, something has damaged the log, and going on would take the store back in
silence.  Source: SQLite, "WAL-mode File Format".
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct(">IIIIIIII")  # magic, version, page size, number of the checkpoint, two salts, two checksums
_FRAME = struct.Struct(">IIIIII")  # page, size of the database after a commit (else 0), two salts, two checksums


def commits_in(path: Path) -> list[int]:
    """Which frames of a log end a commit, counted from 1; only those of its newest use, which have one salt.

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
            _, size, *mine, _, _ = _FRAME.unpack(head)
            frames.append((tuple(mine), size))
            file.seek(page_bytes, 1)
    # A kill behind a new header leaves frames of an older use, which have another salt and count no more.
    return [number for number, (mine, size) in enumerate(frames, 1) if mine == tuple(salt) and size]
