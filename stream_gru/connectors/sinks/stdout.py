"""Standard output."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import IO, Annotated, Literal

from msgspec import Meta

from stream_gru.config.connector import SinkContext, SinkTable
from stream_gru.connectors.sinks.encoders import ENCODERS, Encoder, encode_once
from stream_gru.core.commit_records import FlushResult, SinkCheckpoint
from stream_gru.core.errors import SinkUnavailable
from stream_gru.core.types import PredictionBatch, SinkHealth


class StdoutSinkConfig(SinkTable, frozen=True, kw_only=True, tag="stdout"):
    """Standard output."""

    format: Annotated[
        Literal["jsonl", "csv", "line_protocol"],
        Meta(description='Form of a row: "jsonl" (a JSON object per line), "csv" or "line_protocol" (InfluxDB).'),
    ] = "jsonl"

    def build(self, context: SinkContext) -> StdoutSink:
        """Return the sink."""
        return StdoutSink(ENCODERS[self.format]())

    def delivery_warnings(self) -> Iterator[str]:
        """A pipe cannot be cut back."""
        yield "outputs on standard output cannot be taken back: a kill repeats those of up to one commit"


class StdoutSink:
    """Writes rows to standard output and flushes each batch, so that a pipe sees them at once.

    Written rows cannot be cut back: after a kill rows may be written again, with the same id.
    """

    def __init__(self, encoder: Encoder, stream: IO[bytes] | None = None) -> None:
        self._encoder = encoder
        self._stream = stream
        self._needs_header = True

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Use standard output, unless another stream was given.  Raises SinkUnavailable when it is closed."""
        if self._stream is None:
            if sys.stdout is None:
                raise SinkUnavailable("standard output: closed")
            self._stream = sys.stdout.buffer

    def ready(self) -> bool:
        """A slow reader blocks `write`."""
        return True

    def write(self, batch: PredictionBatch) -> None:
        """Write all rows.  Raises SinkUnavailable when the reader has closed it or the disk behind it is full."""
        data = self._encoder.header(batch.spec, batch.alarm is not None) if self._needs_header else b""
        self._needs_header = False
        data += encode_once(self._encoder, batch)
        if self._stream is None:
            raise SinkUnavailable("standard output: not open")
        try:
            self._stream.write(data)
            self._stream.flush()
        except BrokenPipeError as error:
            _discard_rest(self._stream)
            raise SinkUnavailable("standard output: closed by its reader") from error
        except OSError as error:
            raise SinkUnavailable(f"standard output: cannot be written: {error.strerror}") from error

    def flush(self) -> FlushResult:
        """Everything was flushed by `write`."""
        return FlushResult()

    def committed(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Standard output stays open."""

    def health(self) -> SinkHealth:
        """Connected once it is open."""
        return SinkHealth(connected=self._stream is not None)


def _discard_rest(stream: IO[bytes]) -> None:
    """Drop what is left in the buffer, which otherwise fails at exit of the interpreter."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
