"""Rejected messages and dropped samples: some are logged, all are written to the dead-letter file.

    batch.rejected ──┬─▶ log: a few lines for each source and reason
    output.drops   ──┴─▶ dead-letter file: a JSON line for each message, or stream of a batch, and reason; bounded

    {"time": "2024-05-01T12:00:00Z", "source": "plant", "topic": "sensors/p1/data", "key": "p1", "reason": "parse",
     "records": 2, "row": 41, "offset": 1312, "bytes": 4, "payload": "oops"}

``time`` is that of arrival.  ``row`` and ``offset`` say where the first record at fault begins in the message: its line
or its number in a list, from 1, and its byte (null where the format does not say).  In a recorded file, which is read
in blocks, ``offset`` counts from the beginning of the file, and ``row`` is null.  ``payload`` holds the first 4 KiB of
that record where it has a line or a text of its own, else of the message; ``bytes`` is the length of what came to the
decoder: sources pass on the beginning only of a message that is too large.  Bytes that are not UTF-8 are written as
``{"base64": "/wA="}``.

A sample that conditioning drops no longer has its message; its line names stream, time and what was wrong:

    {"sample_time": "2024-05-01T12:00:00Z", "source": "plant", "stream": "p1", "reason": "out_of_range", "records": 3,
     "detail": "flow = 1e+06, expected 0 to 500"}

Decision: rejected messages are acknowledged like all others, or they would be delivered again and again.
"""

from __future__ import annotations

import base64
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from stream_gru.core.log_limiter import LogLimiter
from stream_gru.core.timestamps import format_iso
from stream_gru.core.types import Code, Dropped, DropReason, RawMessage, Rejected
from stream_gru.model.manifest import Channel

log = logging.getLogger(__name__)

_SHOWN_BYTES = 120
_SHOWN_KEY = 80


class SkipReason(Code):
    """Why a rejected message is not in the dead-letter file.

    ``RATE``   there were more than the file takes in a second
    ``SIZE``   it was in the older file, which was replaced
    ``ERROR``  the disk did not take it
    """

    RATE = 1
    SIZE = 2
    ERROR = 3


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

    @property
    def skipped(self) -> Mapping[SkipReason, int]:
        """Entries that are not in the dead-letter file, by reason."""
        return {} if self._dead_letters is None else self._dead_letters.skipped

    def report(
        self, source: str, rejected: Sequence[Rejected], explain: Callable[[Rejected], str] = lambda _: ""
    ) -> None:
        """Report what the decoder of a source rejected; ``explain``: what is wrong with a record, where it is known."""
        if not rejected:
            return
        if self._dead_letters is not None:
            self._dead_letters.write(source, rejected)
        for entry in rejected:
            if entry.message is None:
                continue
            suppressed = self._limiter.allow((source, entry.reason), entry.records)
            if suppressed is not None:
                why = explain(entry)
                log.warning(
                    "source %s: rejected as %s: %s%s%s%s",
                    source,
                    entry.reason.text,
                    f"{why}; " if why else "",
                    _shown(entry.message, entry),
                    f"; {entry.records:,} such records in this message" if entry.records > 1 else "",
                    f"; {suppressed:,} more records since the last such line" if suppressed else "",
                )

    def report_drops(self, source: str, drops: Sequence[Dropped], channels: Sequence[Channel]) -> None:
        """Report what conditioning dropped; ``channels`` of the model."""
        if drops and self._dead_letters is not None:
            self._dead_letters.write_drops(source, drops, channels)
        for drop in drops:
            suppressed = self._limiter.allow((source, drop.reason), drop.records)
            if suppressed is not None:
                log.warning(
                    "source %s: stream %s: sample at %s dropped as %s: %s%s%s",
                    source,
                    drop.stream,
                    format_iso(np.array([drop.time_ns], np.int64))[0],
                    drop.reason.text,
                    _detail(drop, channels),
                    f"; {drop.records:,} such samples of this stream together" if drop.records > 1 else "",
                    f"; {suppressed:,} more since the last such line" if suppressed else "",
                )

    def close(self) -> None:
        """Log how many records were not logged or not written, and close the file; may be called twice."""
        for (source, reason), suppressed in self._limiter.drain():
            log.warning("source %s: rejected as %s: %s more records", source, reason.text, f"{suppressed:,}")
        if self._dead_letters is not None:
            self._dead_letters.close()


def _shown(message: RawMessage, entry: Rejected) -> str:
    """The key or topic of a message and the beginning of its payload or its line, with control characters escaped."""
    name = message.key or message.topic
    key = repr(name[:_SHOWN_KEY]) if name else "no key"
    data = entry.line or message.payload
    if not data:
        return f"{key}, no payload"
    row = f" row {entry.row}," if entry.row > 1 and message.arrival_ns else ""
    return f"{key},{row} {len(data):,} bytes: {repr(data[:_SHOWN_BYTES])[1:]}"


def _detail(drop: Dropped, channels: Sequence[Channel]) -> str:
    """What was wrong with a sample, with the channel and what was expected."""
    if drop.reason is DropReason.LATE:
        return f"{drop.value:g} s older than the newest sample of the stream"
    if drop.reason is DropReason.DUPLICATE:
        return "a sample of this time was processed before"
    if drop.channel < 0:
        return "too many streams: see run.max_streams"
    channel = channels[drop.channel]
    if math.isnan(drop.value):
        return f"{channel.name} is missing, for longer than its last value is held"
    if channel.categories:
        return f"{channel.name} = {drop.value:g}, expected a whole number from 0 to {channel.categories - 1}"
    low, high = ("any" if bound is None else f"{bound:g}" for bound in (channel.min, channel.max))
    return f"{channel.name} = {drop.value:g}, expected {low} to {high}, and no valid value that could be held"


_PAYLOAD_BYTES = 4096
_KEY_CHARACTERS = 256
_TOPIC_CHARACTERS = 1024
_CHUNK_BYTES = 1_048_576


class DeadLetterFile:
    """Appends to ``path``; before the file grows beyond ``max_bytes`` it replaces ``path.1``, and a new one begins.

    At most ``max_hz`` entries a second are written, by ``clock`` (monotonic seconds).  The file is opened for the first
    entry.  Errors of the disk are logged once until a write succeeds, and never raised: the entries are lost, the
    daemon continues.  ``written`` counts entries; ``skipped`` those that are not in the two files, by reason.
    """

    def __init__(
        self, path: Path | str, max_bytes: int, max_hz: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.skipped: Counter[SkipReason] = Counter()
        self.written = 0
        self._logged = 0, 0
        self._path, self._max_bytes = Path(path), max_bytes
        self._max_hz, self._clock = max_hz, clock
        self._budget, self._budget_s = float(max_hz), clock()
        self._file: int | None = None
        self._size = 0
        self._torn = False
        self._warned = False

    def write(self, source: str, rejected: Sequence[Rejected]) -> None:
        """Append a line for each entry that has a message, as long as the rate allows."""
        letters = [entry for entry in rejected if entry.message is not None]
        self._write(_lines(source, letters[: self._allowed(len(letters))]))

    def write_drops(self, source: str, drops: Sequence[Dropped], channels: Sequence[Channel]) -> None:
        """Append a line for each dropped entry, as long as the rate allows."""
        self._write(_drop_lines(source, drops[: self._allowed(len(drops))], channels))

    def _write(self, lines: Iterable[bytes]) -> None:
        chunk: list[bytes] = []
        size = 0
        for line in lines:
            # The first line goes alone: only an open file has a known size.
            if chunk and (self._file is None or self._size + size + len(line) + 1 > self._max_bytes):
                self._append(chunk)
                chunk, size = [], 0
            chunk.append(line)
            size += len(line)
        if chunk:
            self._append(chunk)

    def close(self) -> None:
        """Close the file and log what was written since it was made; may be called twice."""
        self._close()
        lost = self.skipped.total()
        if (self.written, lost) != self._logged:
            reasons = ", ".join(f"{count:,} {reason.text}" for reason, count in sorted(self.skipped.items()) if count)
            level = logging.WARNING if lost else logging.INFO
            log.log(
                level, "dead letters: %s written to %s, %s not kept%s",
                f"{self.written:,}", self._path, f"{lost:,}", f" ({reasons})" if lost else "",
            )  # fmt: skip
        self._logged = self.written, lost

    def _allowed(self, wanted: int) -> int:
        """How many of so many entries the rate allows now, the others are skipped; a second's may come at once."""
        if not wanted:
            return 0
        now_s = self._clock()
        self._budget = min(self._max_hz, self._budget + (now_s - self._budget_s) * self._max_hz)
        self._budget_s = now_s
        allowed = min(wanted, int(self._budget))
        self._budget -= allowed
        self.skipped[SkipReason.RATE] += wanted - allowed
        return allowed

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _append(self, lines: Sequence[bytes]) -> None:
        data = b"".join(lines)
        try:
            if self._file is None or self._size + len(data) + 1 > self._max_bytes:
                self._open(len(data) + 1)
            assert self._file is not None  # noqa: S101 - for the type checker: `_open` sets it or raises
            begin = int(self._torn)
            data = b"\n" * begin + data
            written = os.write(self._file, data)
        except OSError as error:
            self.skipped[SkipReason.ERROR] += len(lines)
            self._warn(error.strerror or str(error))
            return
        whole = data.count(b"\n", begin, written)
        self.written += whole
        self.skipped[SkipReason.ERROR] += len(lines) - whole
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
            self._close()
            older = self._path.with_name(self._path.name + ".1")
            replaced = _count_lines(older)
            self._path.replace(older)
            self.skipped[SkipReason.SIZE] += replaced
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


def _count_lines(path: Path) -> int:
    """The lines of a file; 0 for one that does not exist.  Raises OSError."""
    try:
        with path.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))
    except FileNotFoundError:
        return 0


def _lines(source: str, rejected: Sequence[Rejected]) -> Iterator[bytes]:
    arrivals = [0 if entry.message is None else entry.message.arrival_ns for entry in rejected]
    for entry, arrival in zip(rejected, format_iso(np.array(arrivals, np.int64)), strict=True):
        if entry.message is not None:
            yield _line(source, entry, entry.message, arrival)


def _drop_lines(source: str, drops: Sequence[Dropped], channels: Sequence[Channel]) -> Iterator[bytes]:
    times = format_iso(np.array([drop.time_ns for drop in drops], np.int64))
    for drop, time_text in zip(drops, times, strict=True):
        letter = {
            "sample_time": time_text,
            "source": source,
            "stream": drop.stream,
            "reason": drop.reason.text,
            "records": drop.records,
            "detail": _detail(drop, channels),
        }
        yield msgspec.json.encode(letter) + b"\n"


def _line(source: str, entry: Rejected, message: RawMessage, time: str) -> bytes:
    data = entry.line or message.payload
    live = message.arrival_ns != 0
    offset = entry.offset
    if not live and offset is not None and message.position is not None:
        offset += max(0, message.position.offset - len(message.payload))  # the position is the end of the block
    letter = {
        "time": time if live else None,
        "source": source,
        "topic": _text(message.topic, _TOPIC_CHARACTERS),
        "key": _text(message.key, _KEY_CHARACTERS),
        "reason": entry.reason.text,
        "records": entry.records,
        "row": entry.row if live else None,
        "offset": offset,
        "bytes": len(data),
        "payload": _payload(data[:_PAYLOAD_BYTES]),
    }
    return msgspec.json.encode(letter) + b"\n"


def _text(text: str, most: int) -> str:
    """The first characters of a text, all of which can be written."""
    return text[:most].encode(errors="replace").decode()


def _payload(data: bytes) -> str | dict[str, str]:
    """Text where the bytes are UTF-8, but for a last character that was cut; else base64."""
    for cut in range(4 if len(data) == _PAYLOAD_BYTES else 1):
        try:
            return data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
    return {"base64": base64.b64encode(data).decode()}
