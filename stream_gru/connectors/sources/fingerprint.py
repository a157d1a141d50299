"""What a position keeps of a text that was read, so that the text is known again after a restart.

A `Position.check` of a text is ``HEAD TAIL``: digests of its first 64 KiB, as far as it was read, and of the last 512
bytes before the place.  A file that has only grown still passes.  Decision: not all of it is digested, which would take
longer than reading it; who changes the middle of a file and nothing else is not found out.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import BinaryIO

from stream_gru.core.errors import DataError
from stream_gru.core.types import Position

_HEAD_BYTES = 65_536
_TAIL_BYTES = 512


class Trail:
    """Remembers of the bytes given to `add` the first ones and the last ones."""

    def __init__(self, head: bytes = b"", tail: bytes = b"", length: int = 0) -> None:
        self.head, self.tail, self.length = head, tail, length
        self._head_digest = digest(head)

    def add(self, data: bytes) -> None:
        """All of the text up to the end of ``data`` was read."""
        self.length += len(data)
        if len(self.head) < _HEAD_BYTES:
            self.head += data[: _HEAD_BYTES - len(self.head)]
            self._head_digest = ""
        self.tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self.tail + data)[-_TAIL_BYTES:]

    def check(self) -> str:
        """What a position at the end of the bytes so far keeps."""
        if not self._head_digest:
            self._head_digest = digest(self.head)
        return f"{self._head_digest} {blake2b(self.tail, digest_size=8).hexdigest()}"

    def difference(self, position: Position) -> str:
        """In what the text differs from that of ``position``, up to which it was added; ``""`` for nothing."""
        if self.length < position.offset:
            return f"it ends after {self.length:,} bytes"
        for known, found, what in zip(position.fingerprint.split(" "), self.check().split(" "), _WHAT, strict=False):
            if known and known != found:
                return f"{what} is another one"
        return ""


_WHAT = ("its beginning", "the text before that place")


def digest(data: bytes) -> str:
    """Sixteen characters that are others for other bytes."""
    return blake2b(data, digest_size=8).hexdigest()


def trail_up_to(file: BinaryIO, offset: int, begin: int = 0) -> Trail:
    """The trail of a text that begins at byte ``begin`` of ``file``, up to ``offset``, where the file then stands.

    Of a file that is too short it is as long as the file.
    """
    file.seek(begin)
    head = file.read(min(_HEAD_BYTES, offset))
    if offset <= len(head):
        return Trail(head, head[-_TAIL_BYTES:], offset)
    place = file.seek(begin + offset - _TAIL_BYTES)
    tail = file.read(_TAIL_BYTES)
    if not tail:  # a plain file can be told to stand behind its end
        place = min(place, file.seek(0, 2))
    return Trail(head, tail, max(0, place - begin) + len(tail))


def refused(where: str, position: Position, why: str, name: str, unit: str = "byte") -> DataError:
    """The error for an input that is not the one that ``position`` is of."""
    return DataError(
        f"{where}: was read up to {unit} {position.offset:,} and has changed since: {why}; give the old one back, or "
        f"{begin_anew(name)}"
    )


def begin_anew(name: str) -> str:
    """The next step for who wants an input to be read from its beginning again."""
    return f"begin anew with `stream-gru state reset CONFIG --source {name}`"
