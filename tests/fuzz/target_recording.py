"""Message logs: files of other programs, and truncated ones."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterable
from pathlib import Path
from shutil import rmtree
from weakref import finalize

from stream_gru.connectors.sources.message_log import MessageLogSource, MessageLogWriter
from stream_gru.core.errors import DataError, EndOfInput
from stream_gru.core.types import Position, RawMessage

FIRST = b'{"stream_gru_recording": 1}\n'


class RecordingTarget:
    """The pieces are the file after its first line, or the whole file."""

    words = (
        b'{"stream_gru_recording": 1}\n', b'"payload":', b'"base64":', b'{"base64": "/wA="}', b'"arrival_ns":',
        b'"source":',
        b'"fault": "type"', b'"key": "p1"', b'"header":', b'"channel":', b"\n", b"{", b"}",
        b'{"payload": ""}\n',
    )  # fmt: skip

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-recording-"))
        finalize(self, rmtree, self._folder)

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """Messages or DataError; a resume after any message gives the rest; written again, they are read again."""
        path = self._folder / ("r.jsonl.gz" if variant & 6 == 6 else "r.jsonl")
        text = (b"" if variant & 1 else FIRST) + b"".join(pieces)
        path.write_bytes(gzip.compress(text, 1) if path.suffix == ".gz" and not variant & 8 else text)
        try:
            messages = _read(path, None)
        except DataError:
            return ["refused as a whole"]
        if not messages:
            return ["nothing"]
        middle = messages[variant // 16 % len(messages)]
        assert _read(path, middle.position) == messages[messages.index(middle) + 1 :], "the rest after a position"
        self._check_written_again(messages)
        return ["message"]

    def _check_written_again(self, messages: list[RawMessage]) -> None:
        path = self._folder / "again.jsonl"
        path.unlink(missing_ok=True)
        with MessageLogWriter(path, wall_ns=lambda: 0) as writer:
            writer.write(messages)
        again = _read(path, None)
        assert [_content(message) for message in again] == [_content(message) for message in messages]


def _read(path: Path, position: Position | None) -> list[RawMessage]:
    source = MessageLogSource([path])
    source.open(position)
    messages: list[RawMessage] = []
    try:
        while True:
            messages += source.poll(1000, 0)
    except EndOfInput:
        return messages
    finally:
        source.close()


def _content(message: RawMessage) -> tuple[object, ...]:
    return (
        message.payload, message.key, message.header, message.arrival_ns, message.channel, message.fault,
        message.source,
    )  # fmt: skip
