"""Message logs: messages of all sources in one file, as `stream-gru record` writes and `replay` reads them.

    {"stream_gru_recording": 1, "created": "2026-03-01T00:00:00Z"}
    {"source": "shop", "key": "pump-1", "arrival_ns": 1772323200000000000, "payload": "{\"flow\": 1.5}"}
    {"source": "port", "key": "port", "arrival_ns": 1772323201000000000, "payload": {"base64": "/wA="}}

One line for each message, without empty keys.  UTF-8 is stored as text, other bytes as base64.
"""  # noqa: D301 - the backslashes are those of the file

from __future__ import annotations

import base64
import gzip
import logging
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from stream_gru.connectors.sources.files import expand
from stream_gru.connectors.sources.resume import (
    changed_input,
    index_of,
    missing_file,
    reset_hint,
    stored_name,
    with_earlier_names,
)
from stream_gru.core.errors import ConfigError, DataError, EndOfInput, SinkUnavailable
from stream_gru.core.types import DropReason, Position, RawMessage, SourceHealth

log = logging.getLogger(__name__)

_VERSION = 1
_MAX_LINE_BYTES = 3 * 1024 * 1024 // 2
_FAULTS = {reason.text: reason for reason in DropReason}


class _First(msgspec.Struct, frozen=True):
    """The first line of a message log."""

    stream_gru_recording: int
    created: str = ""


class _Binary(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes that are not UTF-8."""

    base64: str


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message."""

    source: str = ""
    key: str = ""
    channel: str = ""
    arrival_ns: int = 0
    header: str | _Binary = ""
    payload: str | _Binary = ""
    fault: str = ""
    topic: str = ""


_FIRST = msgspec.json.Decoder(_First)
_LINE = msgspec.json.Decoder(_Line)


class MessageLogWriter:
    """Writes messages to a new file, compressed when its name ends ``.gz``; use it in a ``with`` statement.

    A message that does not fit into a line of 1.5 MiB is written as too large, without payload; ``too_large`` counts
    them.
    """

    def __init__(self, path: Path | str, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._path, self._wall_ns = Path(path), wall_ns
        self._file: IO[bytes] | gzip.GzipFile | None = None
        self._raw: IO[bytes] | None = None
        self.messages = 0
        self.too_large = 0

    def open(self) -> None:
        """Create the file.  Raises ConfigError when it exists, SinkUnavailable when it cannot be written."""
        try:
            self._raw = self._path.open("xb")
        except FileExistsError as error:
            raise ConfigError(f"{self._path}: already exists; expected the name of a new file") from error
        except OSError as error:
            raise self._refused(error) from error
        compressed = self._path.name.lower().endswith(".gz")
        self._file = gzip.GzipFile("", "wb", 6, self._raw, mtime=0) if compressed else self._raw
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._wall_ns() // 1_000_000_000))
        self._write(msgspec.json.encode(_First(_VERSION, created)) + b"\n")

    def write(self, messages: Sequence[RawMessage]) -> None:
        """Write a line for each message.  Raises SinkUnavailable."""
        self._write(b"".join(map(self._line, messages)))
        self.messages += len(messages)

    def flush(self) -> None:
        """Pass what was written to the operating system, so that it survives the end of this process."""
        if self._file is None or self._raw is None:
            return
        try:
            self._file.flush()
            self._raw.flush()
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Flush and close; may be called twice."""
        files = self._file, self._raw
        self._file = self._raw = None
        failed: OSError | None = None
        for file in files:
            try:
                if file is not None:
                    file.close()
            except OSError as error:
                failed = failed or error
        if failed is not None:
            raise self._refused(failed) from failed

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _line(self, message: RawMessage) -> bytes:
        line = _encoded(message, _text)
        if len(line) > _MAX_LINE_BYTES:  # control characters take six bytes as text
            line = _encoded(message, _binary)
        if len(line) > _MAX_LINE_BYTES:
            self.too_large += 1
            line = _encoded(_without_content(message), _text)
        return line

    def _write(self, data: bytes) -> None:
        if self._file is None:
            raise SinkUnavailable(f"{self._path}: not open")
        try:
            self._file.write(data)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> SinkUnavailable:
        return SinkUnavailable(f"{self._path}: cannot be written: {error.strerror or error}")


class MessageLogSource:
    """Returns the recorded messages, at most ``block`` at once, equal to the originals but for ``position``.

    ``paths`` are names or patterns, resolved when the source is opened; ``name`` is that of the source.  Positions are
    bytes of the uncompressed text, with the CRC-32 of all before them and the names of earlier files.  An incomplete
    last line, as a killed process leaves it, is skipped with a warning.
    """

    def __init__(self, paths: Sequence[Path | str], block: int = 256, name: str = "recording") -> None:
        self._paths, self._block, self._name = [str(path) for path in paths], block, name
        self._messages: Iterator[RawMessage] = iter(())

    def open(self, position: Position | None) -> None:
        """Start at the first file, or after ``position``.

        Raises DataError when a file is missing, or is not the one of ``position``.
        """
        if position is not None and not Path(position.name).is_file():
            raise missing_file(position, self._name)
        self._messages = _read_all(expand(self._paths), position, self._name)
        if position is None:
            return
        first = next(self._messages, None)  # opens the file now
        if first is not None:
            self._messages = chain([first], self._messages)
        else:
            log.info("%s: was read to its end before, in %s; %s", self._name, position.name, reset_hint(self._name))

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return the next messages.  Raises EndOfInput after the last, DataError when a file is damaged."""
        messages = list(islice(self._messages, max(1, min(limit, self._block))))
        if not messages:
            raise EndOfInput
        return messages

    def commit(self, position: Position) -> None:
        """A file needs no acknowledgement."""

    def close(self) -> None:
        """Close the file."""
        self._messages = iter(())

    def health(self) -> SourceHealth:
        """A file is always connected."""
        return SourceHealth()


def _read_all(paths: list[Path], position: Position | None, name: str) -> Iterator[RawMessage]:
    begin = index_of(paths, position, name) if position is not None else 0
    for path, earlier in with_earlier_names(paths, begin):
        try:
            yield from _read(path, earlier, position, name)
        except (OSError, zlib.error) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
        position = None  # the next files are read from their beginnings


def _read(path: Path, earlier: str, after: Position | None, name: str) -> Iterator[RawMessage]:
    """Messages after ``after``; earlier lines are read too, for the number of a damaged line."""
    end = after.offset if after is not None else 0
    known = after.fingerprint.split(" ")[0] if after is not None else ""
    place = crc = 0
    for number, line in enumerate(_lines(path), 1):
        if place < end < place + len(line):
            break
        place += len(line)
        crc = zlib.crc32(line, crc)
        check = f"{crc:08x} -{earlier}"
        if number == 1:
            _check_first(path, line)
        elif place > end:
            yield _decoded(line, f"{path}:{number}", Position(stored_name(path), place, check))
        if after is not None and place == end and known and known != f"{crc:08x}":
            raise changed_input(str(path), after, "the text before that position differs", name)
    if after is not None and place < end:
        raise changed_input(str(path), after, "no line ends there", name)


def _lines(path: Path) -> Iterator[bytes]:
    """Complete lines.  Raises DataError for one that is too long."""
    number = 0
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
        while True:
            number += 1
            try:
                line = file.readline(_MAX_LINE_BYTES + 1)
            except EOFError:  # of compressed data that ends too early
                line = b"{"
            if not line:
                return
            if len(line) > _MAX_LINE_BYTES:
                raise DataError(f"{path}:{number}: expected at most {_MAX_LINE_BYTES} bytes in a line, got more")
            if not line.endswith(b"\n"):
                log.warning("%s:%d: the last line is incomplete and skipped", path, number)
                return
            yield line


def _check_first(path: Path, line: bytes) -> None:
    try:
        version = _FIRST.decode(line).stream_gru_recording
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}:1: expected a recording of stream-gru record, got {line[:60]!r}") from error
    if version != _VERSION:
        raise DataError(f"{path}:1: expected a recording of version {_VERSION}, got version {version}")


def _decoded(line: bytes, place: str, position: Position) -> RawMessage:
    try:
        read = _LINE.decode(line)
        header, payload = _bytes(read.header), _bytes(read.payload)
        fault = _FAULTS[read.fault] if read.fault else None
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{place}: expected a recorded message: {error}") from error
    except KeyError as error:
        raise DataError(f"{place}: fault: expected one of {', '.join(_FAULTS)}, got {error}") from error
    return RawMessage(
        payload, read.key, header, read.arrival_ns, position, read.channel, fault, read.source, read.topic
    )


def _encoded(message: RawMessage, form: Callable[[bytes], str | _Binary]) -> bytes:
    line = _Line(
        source=message.source,
        key=message.key,
        channel=message.channel,
        arrival_ns=message.arrival_ns,
        header=form(message.header),
        payload=form(message.payload),
        fault=message.fault.text if message.fault is not None else "",
        topic=message.topic,
    )
    return msgspec.json.encode(line) + b"\n"


def _without_content(message: RawMessage) -> RawMessage:
    return RawMessage(
        b"",
        message.key[:128],
        arrival_ns=message.arrival_ns,
        fault=DropReason.TOO_LARGE,
        source=message.source,
        topic=message.topic[:1024],
    )


def _text(data: bytes) -> str | _Binary:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _binary(data)


def _binary(data: bytes) -> _Binary:
    return _Binary(base64.b64encode(data).decode())


def _bytes(form: str | _Binary) -> bytes:
    if isinstance(form, _Binary):
        return base64.b64decode(form.base64, validate=True)
    return form.encode()
