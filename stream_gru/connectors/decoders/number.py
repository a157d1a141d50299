"""Bare numbers: ``21.5``, one value of one channel a message, as ESPHome and many others publish.

A number says nothing of its time and stream: those are its arrival and its topic, whatever [input] names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from msgspec.structs import replace as replace_keys

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.parsing import EXACT, is_inexact
from stream_gru.connectors.decoders.record_batch import Record, Records, Shape
from stream_gru.core.types import DropReason, RawMessage, SampleBatch

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)

_NO_NUMBER = re.compile(r"[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)


class NumberDecoder:
    """Reads messages whose payload is one decimal number.

    The channel is that of the topic; without, the one in ``fields`` of the source, or the only one there is.  What is
    no number (``ON``, ``unavailable``, ``nan``, nothing) is a reject, not a missing value: it tells a wrong topic.
    """

    def __init__(self, fields: Fields) -> None:
        bare = replace_keys(fields.input, time="", stream="", label="", reset="", episode="", device_seq="")
        self._fields = replace(fields, input=bare)
        self._shape = Shape(self._fields)
        alone = fields.names if len(fields.names) == 1 else fields.columns if len(fields.columns) == 1 else ()
        self._alone = fields.index_of(alone[0]) if alone else -1

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        records = Records(self._shape)
        for message in raw:
            if records.faulty(message):
                continue
            text = records.text(message)
            if text is not None:
                records.add(self._record(text.strip(" \t\r\n"), message.channel), message)
        return records.batch()

    def _record(self, text: str, channel: str) -> Record | DropReason:
        index = self._fields.index_of(channel) if channel else self._alone
        if index < 0:
            return DropReason.UNKNOWN_STREAM if channel else DropReason.MISSING_FIELD
        if not _NUMBER.fullmatch(text):
            return DropReason.NON_FINITE if _NO_NUMBER.fullmatch(text) else DropReason.PARSE
        number = float(text)
        if abs(number) >= EXACT and (math.isinf(number) or is_inexact(text)):
            return DropReason.OUT_OF_RANGE
        return {self._fields.columns[index]: number}
