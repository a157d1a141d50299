"""The forms of a row, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from stream_gru.connectors.sinks.encode_csv import CsvEncoder
from stream_gru.connectors.sinks.encode_json import JsonEncoder
from stream_gru.connectors.sinks.encode_line_protocol import LineEncoder
from stream_gru.core.types import OutputSpec, PredictionBatch


class Encoder(Protocol):
    """The form of a row."""

    def header(self, spec: OutputSpec, alarm: bool = False) -> bytes:
        """What stands before the first row; ``alarm``: rows say whether they are one."""
        ...

    def encode(self, batch: PredictionBatch) -> bytes:
        """All rows of a batch."""
        ...


ENCODERS: dict[str, Callable[[], Encoder]] = {"jsonl": JsonEncoder, "csv": CsvEncoder, "line_protocol": LineEncoder}
