"""Lines on standard input.

After a restart a file is continued, as by `sources.files`.  A pipe is compared with the input before: one with
the same beginning is the same input, and its processed part is skipped; one that begins differently is a new input.
"""

from __future__ import annotations

import logging
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

from msgspec import Meta

from stream_gru.config.connector import SourceContext, SourceTable, Unique
from stream_gru.config.field_types import LineFormat
from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.sources.framing import HeaderLine
from stream_gru.connectors.sources.resume import (
    Fingerprint,
    Match,
    PackedPrefix,
    PrefixMatcher,
    changed_input,
    fingerprint_up_to,
    reset_hint,
)
from stream_gru.core.errors import ConfigError, EndOfInput, SourceUnavailable
from stream_gru.core.types import Position, RawMessage, SourceHealth

log = logging.getLogger(__name__)

_MAX_LINE_BYTES = 1024 * 1024


class StdinSourceConfig(SourceTable, frozen=True, kw_only=True, tag="stdin"):
    """Lines on standard input."""

    format: Annotated[LineFormat, Meta(description="Decoder of the lines.", examples=["jsonl"])]

    reader = "loop"

    @property
    def unique(self) -> Unique:
        """There is one standard input."""
        return Unique("type", "stdin")

    def build(self, context: SourceContext) -> StdinSource:
        """Return the source; the first line of CSV is its header, unless names are given."""
        return StdinSource(header=self.format == "csv" and not self.input.fields, name=context.name)

    def delivery_warnings(self, broker: BrokerConfig | None) -> Iterator[str]:
        """A pipe keeps nothing."""
        yield "a pipe repeats nothing: after a restart the same input must be fed again from its beginning"

    def reload_problem(self, new: SourceTable) -> str:
        """What was read is not read again with another table."""
        return "" if new == self else "standard input cannot change while the daemon runs; restart it"


class StdinSource:
    """Returns whole lines; with ``header`` the first line of the input is the header of all messages.

    The header waits for the line after it, which shows whether it is complete.  A header without lines becomes a
    message without payload at the end, so that its columns are checked.  Positions are bytes of the input.
    """

    def __init__(
        self,
        header: bool,
        descriptor: int | None = None,
        wall_ns: Callable[[], int] = time.time_ns,
        name: str = "stdin",
    ) -> None:
        self._name = name
        self._descriptor, self._wall_ns = descriptor, wall_ns
        self._wants_header = header
        self._ended = False
        self._restart(None)

    def _restart(self, after: Position | None) -> None:
        """Start over; what lies before ``after`` is skipped."""
        self._after, self._resumed = after, after is not None
        self._matcher: PrefixMatcher | None = None  # while a pipe's input may be the same or a new one
        self._fingerprint, self._prefix = Fingerprint(), PackedPrefix()
        self._header = HeaderLine(_MAX_LINE_BYTES) if self._wants_header else None
        self._rest = b""
        self._in_old_line = False  # the current line was returned before, incomplete at the end of the input
        self._silent = True  # no message was returned yet

    def open(self, position: Position | None) -> None:
        """Take the descriptor of standard input, unless another was given, and continue after ``position``.

        Raises ConfigError when it is closed, DataError when it is a file that was changed.
        """
        if self._descriptor is None:
            try:
                self._descriptor = sys.stdin.fileno()
            except (AttributeError, OSError, ValueError) as error:  # closed, or replaced by something without one
                raise ConfigError(
                    "standard input: expected lines, got a closed descriptor; start with < FILE or in a pipe"
                ) from error
        self._restart(position)
        if position is None:
            return
        if stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            self._seek(self._descriptor, position)
            return
        try:
            self._matcher = PrefixMatcher(position)
        except ValueError:
            raise changed_input("standard input", position, "the stored prefix is not valid", self._name) from None

    def poll(self, limit: int, timeout_s: float) -> Sequence[RawMessage]:
        """Return the lines that are there, waiting at most ``timeout_s`` seconds.

        Raises EndOfInput at the end, DataError when a repeated input differs from the one before.
        """
        if self._ended:
            raise EndOfInput
        descriptor = self._descriptor
        if descriptor is None:
            raise SourceUnavailable("standard input: not open")
        if not select.select([descriptor], [], [], timeout_s)[0]:
            return []
        data = os.read(descriptor, max(4096, 64 * limit))
        arrival_ns = self._wall_ns()
        self._ended = not data
        messages = self._messages(self._unread(self._matched(data)), arrival_ns)
        self._silent = self._silent and not messages
        if self._ended and self._silent and self._resumed and self._fingerprint.length:
            log.info("%s: was read to its end before; %s", self._name, reset_hint(self._name))
        return messages

    def commit(self, position: Position) -> None:
        """A pipe has no acknowledgement."""

    def close(self) -> None:
        """Standard input belongs to the caller."""

    def health(self) -> SourceHealth:
        """A pipe is there until its end."""
        return SourceHealth(connected=not self._ended)

    def _seek(self, descriptor: int, after: Position) -> None:
        """Continue in a file, which begins where the descriptor stands."""
        begin = os.lseek(descriptor, 0, os.SEEK_CUR)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            if self._header is not None:
                self._header.take(file.readline(_MAX_LINE_BYTES))
                self._header.take(file.readline(_MAX_LINE_BYTES))
            self._fingerprint = fingerprint_up_to(file, after.offset, begin)
        self._verify(after)
        os.lseek(descriptor, begin + after.offset, os.SEEK_SET)

    def _verify(self, after: Position) -> None:
        difference = self._fingerprint.difference(after)
        if difference:
            raise changed_input("standard input", after, difference, self._name)

    def _matched(self, data: bytes) -> bytes:
        """What has come, once it is decided whether the input is new."""
        if self._matcher is None:
            return data
        verdict = self._matcher.feed(data)
        if verdict is Match.UNDECIDED and not self._ended:
            return b""
        held, self._matcher = self._matcher.held, None
        if verdict is Match.NEW:
            log.warning("%s: begins differently than the input before: it is a new input", self._name)
            self._restart(None)
        elif verdict is Match.SAME and self._after is not None:
            log.info("%s: is the same input again; its first %d bytes are skipped", self._name, self._after.offset)
        return held

    def _unread(self, data: bytes) -> bytes:
        """The part of ``data`` that was not returned before a restart.  Raises DataError when the rest has changed."""
        after = self._after
        if after is not None:
            data = self._drop(data, after.offset - self._fingerprint.length)
            short = self._fingerprint.length < after.offset
            if short and not (self._ended and self._fingerprint.length):  # an empty input is no error
                return b""
            self._verify(after)
            self._after = None
            self._in_old_line = bool(self._fingerprint.tail) and not self._fingerprint.tail.endswith(b"\n")
        if self._in_old_line:
            cut = data.find(b"\n") + 1 or len(data)
            if data[:cut].strip() and (self._header is None or self._header.found):
                log.warning(
                    "%s: the last line was read incomplete; what was added to it is skipped",
                    self._name,
                )
            self._in_old_line = not data[:cut].endswith(b"\n")
            data = self._drop(data, cut)
        return data

    def _drop(self, data: bytes, count: int) -> bytes:
        """Skip ``count`` bytes, but for the header."""
        self._fingerprint.add(data[:count])
        if self._header is not None:
            self._header.take(data[:count])
        return data[count:]

    def _messages(self, data: bytes, arrival_ns: int) -> list[RawMessage]:
        """A message of the complete lines, if any; a line beyond the limit is cut."""
        body = self._header.take(data) if self._header is not None else data
        self._fingerprint.add(data[: len(data) - len(body)])
        cut = body.rfind(b"\n") + 1
        if not cut and not self._ended:
            self._fingerprint.add(body)
            self._rest = (self._rest + body)[:_MAX_LINE_BYTES]
            return []
        lines, self._rest = self._rest + body[:cut], body[cut:]
        self._fingerprint.add(body[:cut])
        position = self._position()
        self._fingerprint.add(self._rest)
        unseen = self._silent and not self._resumed and self._header is not None and position.offset
        if not lines and not unseen:
            return []
        header = self._header.header if self._header is not None else b""
        return [RawMessage(lines, "stdin", header, arrival_ns, position, source=self._name, topic="stdin")]

    def _position(self) -> Position:
        """The end of what was read."""
        return Position(
            self._name, self._fingerprint.length, f"{self._fingerprint.text()} {self._prefix.text(self._fingerprint)}"
        )
