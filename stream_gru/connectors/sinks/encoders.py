"""The forms of outputs, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from stream_gru.connectors.sinks.encode_csv import CsvEncoder
from stream_gru.connectors.sinks.encode_json import JsonEncoder
from stream_gru.connectors.sinks.encode_line_protocol import LineEncoder
from stream_gru.core.types import OutputSpec, PredictionBatch


class Encoder(Protocol):
    """Encodes outputs in one form.  `encode_once` shares its result among all sinks that write this form."""

    form: str

    def header(self, spec: OutputSpec, alarm: bool = False) -> bytes:
        """The bytes before the first row; ``alarm``: rows have an alarm field."""
        ...

    def encode(self, batch: PredictionBatch) -> bytes:
        """All rows of a batch, each ending in a line end."""
        ...


def encode_once(encoder: Encoder, batch: PredictionBatch) -> bytes:
    """All rows of ``batch``; a form that another sink has asked for is not encoded again."""
    data = batch.encoded.get(encoder.form)
    if data is None:
        data = batch.encoded[encoder.form] = encoder.encode(batch)
    return data


ENCODERS: dict[str, Callable[[], Encoder]] = {"jsonl": JsonEncoder, "csv": CsvEncoder, "line_protocol": LineEncoder}
