"""Plain numbers: ``21.5``, one value of one channel a message, and lines of the Arduino serial plotter.

A plain number has no time and no stream: they are its arrival and its topic, whatever fields [input] names.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace

from msgspec.structs import replace as replace_keys

from stream_gru.connectors.decoders.csv_decoders import HeaderCache
from stream_gru.connectors.decoders.field_map import Fields, checked_names
from stream_gru.connectors.decoders.parsing import EXACT, MISSING, NUMBER, is_inexact
from stream_gru.connectors.decoders.record_batch import MAX_FIELDS, Record, RecordBatch, RecordDecoder, is_name
from stream_gru.connectors.decoders.text import BYTE_ORDER_MARK
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


_SEPARATORS = re.compile(r"[ \t,]+")
# "temp: 21.5", as many sketches print it.
_COLON_BLANK = re.compile(r":[ \t]+(?=[-+.\d])")


class PlotterDecoder(RecordDecoder):
    """Reads messages whose payload is lines for the plotter.

    ``fields`` of the source labels values until the device sends labels.  Decision: a line of text that names no
    channel is rejected and changes no labels, since devices print error messages between their values.
    """

    separators = ","

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self._names = list(checked_names(fields)) if fields.names else None
        self.state: HeaderCache[list[str]] = HeaderCache(list)

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add a record for each line with values."""
        for number, line in enumerate(batch.lines(message), 1):
            text = line.removeprefix(BYTE_ORDER_MARK).strip(" \t\r,")
            found = self._record(text, message) if text else None
            if found is not None:
                batch.add(found, message, number)

    def _record(self, text: str, message: RawMessage) -> Record | DropReason | None:
        if ":" in text:
            parts = _SEPARATORS.split(_COLON_BLANK.sub(":", text))
            record: Record = {}
            for part in parts:
                label, colon, value = part.partition(":")
                if not colon or not label:
                    return DropReason.PARSE
                record[label] = value
            return record
        parts = _SEPARATORS.split(text)
        if not any(NUMBER.fullmatch(part) or part.lower() in MISSING for part in parts):
            if self.resolver.columns.isdisjoint(parts):
                return DropReason.MISSING_FIELD
            if len(parts) > MAX_FIELDS:
                return DropReason.TOO_MANY_FIELDS
            if not all(map(is_name, parts)):
                return DropReason.TOO_LARGE
            self.state.learn(message, parts)
            return None
        labels = self.state.lookup(message) or self._names
        if labels is None or len(parts) < len(labels):
            return DropReason.MISSING_FIELD
        if len(parts) > len(labels):
            return DropReason.PARSE
        return dict(zip(labels, parts, strict=True))
