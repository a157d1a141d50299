"""Bare numbers: ``21.5``, one value of one channel a message, as ESPHome and many others publish.

Time and stream of a number are its arrival and its topic, whatever fields [input] names.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from msgspec.structs import replace as replace_keys

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.field_resolver import Record
from stream_gru.connectors.decoders.parsing import EXACT, is_inexact
from stream_gru.connectors.decoders.record_batch import RecordBatch, RecordDecoder
from stream_gru.core.types import DropReason, RawMessage

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)


class NumberDecoder(RecordDecoder):
    """Reads messages whose payload is one decimal number.

    The channel is that of the topic; without one, the only name in ``fields`` of the source, or the only channel.
    Anything else (``ON``, ``unavailable``, ``nan``) is rejected instead of read as missing: it shows a wrong topic.
    """

    def __init__(self, fields: Fields) -> None:
        bare = replace_keys(fields.input, time="", stream="", label="", reset="", episode="", device_seq="")
        super().__init__(replace(fields, input=bare))
        self._fields = fields
        only = fields.names if len(fields.names) == 1 else fields.columns if len(fields.columns) == 1 else ()
        self._only = fields.index_of(only[0]) if only else -1

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add the number as a record of one field."""
        text = batch.text(message)
        if text is not None:
            batch.add(self._record(text.strip(" \t\r\n"), message.channel), message)

    def _record(self, text: str, channel: str) -> Record | DropReason:
        index = self._fields.index_of(channel) if channel else self._only
        if index < 0:
            return DropReason.UNKNOWN_STREAM if channel else DropReason.MISSING_FIELD
        if not _NUMBER.fullmatch(text):
            return DropReason.NON_FINITE if _NOT_FINITE.fullmatch(text) else DropReason.PARSE
        number = float(text)
        if abs(number) >= EXACT and (math.isinf(number) or is_inexact(text)):
            return DropReason.OUT_OF_RANGE
        return {self._fields.columns[index]: number}
