"""Rejected messages: some are logged, all are written to the dead-letter file.  Their decoder has counted them.

    batch.rejected ──▶ log: a few lines for each source and reason
                   ╰─▶ dead-letter file: one JSON line for each message and reason, bounded, not durable

    {"time": "2024-05-01T12:00:00Z", "source": "plant", "key": "p1", "reason": "parse", "records": 1, "bytes": 4,
     "payload": "oops"}

``time`` is that of arrival.  ``payload`` holds the first 4 KiB of the message, or of the first of its lines at fault,
``bytes`` is the whole length.  Bytes that are not UTF-8 are written as ``{"base64": "/wA="}``.

Decision: rejected messages are acknowledged like all others, or they would be delivered again and again.
"""

from __future__ import annotations

import base64
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from stream_gru.core.log_limiter import LogLimiter
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import DropReason, RawMessage, Rejected

log = logging.getLogger(__name__)

_SHOWN_BYTES = 120
_SHOWN_KEY = 80


class RejectReporter:
    """Logs rejected messages, at most three lines and then one in ten seconds for a source and a reason.

    All of them are written to ``dead_letters``.  Rows that were rejected after decoding (paused streams, rate limits)
    come without a message: they are counted elsewhere and not reported.  ``clock``: monotonic seconds.
    """

    def __init__(
        self, dead_letters: DeadLetterFile | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._dead_letters = dead_letters
        self._limiter: LogLimiter[tuple[str, DropReason]] = LogLimiter(clock)

    def report(self, source: str, rejected: Sequence[Rejected]) -> None:
        """Report what the decoder of a source rejected."""
        if not rejected:
            return
        if self._dead_letters is not None:
            self._dead_letters.write(source, rejected)
        for reason, records, message, line in rejected:
            if message is None:
                continue
            suppressed = self._limiter.allow((source, reason), records)
            if suppressed is not None:
                log.warning(
                    "source %s: rejected as %s: %s%s%s",
                    source,
                    reason.text,
                    _shown(message, line),
                    f"; {records:,} such records in this message" if records > 1 else "",
                    f"; {suppressed:,} more records since the last such line" if suppressed else "",
                )

    def close(self) -> None:
        """Log how many records were not logged, and close the file; may be called twice."""
        for (source, reason), suppressed in self._limiter.drain():
            log.warning("source %s: rejected as %s: %s more records", source, reason.text, f"{suppressed:,}")
        if self._dead_letters is not None:
            self._dead_letters.close()


def _shown(message: RawMessage, line: bytes) -> str:
    """The key of a message and the beginning of its payload or its line, with control characters escaped."""
    key = repr(message.key[:_SHOWN_KEY]) if message.key else "no key"
    data = line or message.payload
    if not data:
        return f"{key}, no payload"
    return f"{key}, {len(data):,} bytes: {repr(data[:_SHOWN_BYTES])[1:]}"


_PAYLOAD_BYTES = 4096
_KEY_CHARACTERS = 256


class DeadLetterFile:
    """Appends to ``path``; before the file grows beyond ``max_bytes`` it replaces ``path.1``, and a new one begins.

    The file is opened for the first entry.  Errors of the disk are logged once until a write succeeds, and never
    raised: the entries are lost, the daemon continues.
    """

    def __init__(self, path: Path | str, max_bytes: int) -> None:
        self._path, self._max_bytes = Path(path), max_bytes
        self._file: int | None = None
        self._size = 0
        self._torn = False
        self._warned = False

    def write(self, source: str, rejected: Sequence[Rejected]) -> None:
        """Append a line for each entry that has a message."""
        chunk: list[bytes] = []
        size = 0
        for line in _lines(source, rejected):
            # The first line goes alone: only an open file has a known size.
            if chunk and (self._file is None or self._size + size + len(line) + 1 > self._max_bytes):
                self._append(b"".join(chunk))
                chunk, size = [], 0
            chunk.append(line)
            size += len(line)
        if chunk:
            self._append(b"".join(chunk))

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, lines: bytes) -> None:
        try:
            if self._file is None or self._size + len(lines) + 1 > self._max_bytes:
                self._open(len(lines) + 1)
            assert self._file is not None  # noqa: S101 - for the type checker: `_open` sets it or raises
            data = b"\n" + lines if self._torn else lines
            written = os.write(self._file, data)
        except OSError as error:
            self._warn(error.strerror or str(error))
            return
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            self._warn(f"{written} of {len(data)} bytes were written")
        else:
            self._warned = False

    def _open(self, needed: int) -> None:
        """Open the file, or begin another one where ``needed`` bytes do not fit."""
        if self._file is None:
            self._file = _opened(self._path)
            self._size = os.fstat(self._file).st_size
            # A killed process may have left half a line.
            self._torn = self._size > 0 and os.pread(self._file, 1, self._size - 1) != b"\n"
        if self._size and self._size + needed > self._max_bytes:
            self.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file, self._size, self._torn = _opened(self._path), 0, False

    def _warn(self, why: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "dead letters: cannot write %s: %s; rejected messages are lost until a write succeeds", self._path, why
            )


def _opened(path: Path) -> int:
    """Open for appending, readable by the owner only; a pipe without a reader is an error instead of a wait."""
    return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)


def _lines(source: str, rejected: Sequence[Rejected]) -> Iterator[bytes]:
    arrivals = [0 if entry.message is None else entry.message.arrival_ns for entry in rejected]
    for entry, arrival in zip(rejected, format_iso(np.array(arrivals, np.int64)), strict=True):
        if entry.message is not None:
            yield _line(source, entry, entry.message, arrival)


def _line(source: str, entry: Rejected, message: RawMessage, time: str) -> bytes:
    data = entry.line or message.payload
    letter = {
        "time": time if message.arrival_ns else None,
        "source": source,
        "key": message.key[:_KEY_CHARACTERS].encode(errors="replace").decode(),
        "reason": entry.reason.text,
        "records": entry.records,
        "bytes": len(data),
        "payload": _payload(data[:_PAYLOAD_BYTES]),
    }
    return msgspec.json.encode(letter) + b"\n"


def _payload(data: bytes) -> str | dict[str, str]:
    """Text where the bytes are UTF-8, but for a last character that was cut; else base64."""
    for cut in range(4 if len(data) == _PAYLOAD_BYTES else 1):
        try:
            return data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
    return {"base64": base64.b64encode(data).decode()}
