"""Dead letters: a file of what was refused, to be looked at later.  It is bounded and promises nothing.

    {"time": "2024-05-01T12:00:00Z", "source": "plant", "key": "p1", "reason": "parse", "bytes": 4, "payload": "oops"}

A line a message, or a line of one; ``time`` is that of arrival.  Bytes that are UTF-8 stand as text, others as
``{"base64": "/wA="}``; ``bytes`` is the length of the whole payload, of which 4 KiB are kept at most.
"""

from __future__ import annotations

import base64
import logging
import os
from pathlib import Path

import msgspec
import numpy as np

from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import DropReason, RawMessage

log = logging.getLogger(__name__)

_PAYLOAD_BYTES = 4096
_KEY_CHARACTERS = 256


class DeadLetters:
    """Appends to ``path``; before it grows beyond ``max_bytes`` it becomes ``path.1``, in place of the one before.

    Nothing is touched before the first letter.  What the disk refuses is logged once, until it takes one again, and
    lost: no error of it ever reaches the loop.
    """

    def __init__(self, path: Path | str, max_bytes: int) -> None:
        self._path, self._max_bytes = Path(path), max_bytes
        self._file: int | None = None
        self._size = 0
        self._torn = False
        self._warned = False

    def keep(self, source: str, message: RawMessage, reason: DropReason) -> None:
        """Write one line."""
        line = _line(source, message, reason)
        try:
            if self._file is None or self._size + len(line) + 1 > self._max_bytes:
                self._open(len(line) + 1)
            assert self._file is not None  # noqa: S101 - for the reader: `_open` sets or raises
            data = b"\n" + line if self._torn else line
            written = os.write(self._file, data)
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            self._fail(f"{written} of {len(data)} bytes were written")
        else:
            self._warned = False

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self, room: int) -> None:
        """Open the file, or begin another one where there is not enough room."""
        if self._file is None:
            self._file = _opened(self._path)
            self._size = os.fstat(self._file).st_size
            # Whoever wrote last may have been killed.
            self._torn = self._size > 0 and os.pread(self._file, 1, self._size - 1) != b"\n"
        if self._size and self._size + room > self._max_bytes:
            self.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file, self._size, self._torn = _opened(self._path), 0, False

    def _fail(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s: dead letters cannot be kept: %s; said once", self._path, why)


def _opened(path: Path) -> int:
    """Open for appending, for our eyes only; a pipe is no reason to wait."""
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


def _line(source: str, message: RawMessage, reason: DropReason) -> bytes:
    arrival = np.array([message.arrival_ns], np.int64)
    letter = {
        "time": format_iso(arrival)[0] if message.arrival_ns else None,
        "source": source,
        "key": message.key[:_KEY_CHARACTERS].encode(errors="replace").decode(),
        "reason": reason.text,
        "bytes": len(message.payload),
        "payload": _payload(message.payload[:_PAYLOAD_BYTES]),
    }
    return msgspec.json.encode(letter) + b"\n"


def _payload(data: bytes) -> str | dict[str, str]:
    """Text, where it is; the last character may be cut."""
    for cut in range(4 if len(data) == _PAYLOAD_BYTES else 1):
        try:
            return data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
    return {"base64": base64.b64encode(data).decode()}
