"""Sources read to their end, and their content line by line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from stream_gru.connectors.sources.stdin import StdinSource
from stream_gru.core.errors import EndOfInput
from stream_gru.core.protocols import Source
from stream_gru.core.types import Position, RawMessage

TABLE = b"time,flow\n" + b"".join(b"%d,%d\n" % (i, i * 2) for i in range(20_000))


def drain(
    source: Source, position: Position | None = None, timeout_s: float = 1.0, limit: int = 10
) -> list[RawMessage]:
    """All messages after ``position``."""
    messages: list[RawMessage] = []
    source.open(position)
    try:
        while True:
            messages += source.poll(limit, timeout_s)
    except EndOfInput:
        return messages
    finally:
        source.close()


def keyed_lines(messages: Sequence[RawMessage]) -> list[tuple[str, bytes, bytes]]:
    """Key, header and text of each line that is not blank."""
    return [
        (message.key, message.header, line)
        for message in messages
        for line in message.payload.split(b"\n")
        if line.strip()
    ]


def position_of(message: RawMessage) -> Position:
    """The position of a message that must have one."""
    assert message.position is not None
    return message.position


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe, the reading one first; the writing one may be closed before."""
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        with suppress(OSError):
            os.close(writer)


def through_pipe(
    chunks: Sequence[bytes], header: bool, position: Position | None = None, name: str = "stdin"
) -> list[RawMessage]:
    """What standard input returns for bytes that arrive in these portions (each less than 64 KiB)."""
    messages: list[RawMessage] = []
    with pipe() as (reader, writer):
        source = StdinSource(header, reader, wall_ns=lambda: 7, name=name)
        source.open(position)
        for chunk in filter(None, chunks):
            os.write(writer, chunk)
            messages += source.poll(1000, 1.0)
        os.close(writer)
        try:
            while True:
                messages += source.poll(1000, 1.0)
        except EndOfInput:
            return messages
