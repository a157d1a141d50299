"""Lines of the Arduino Serial Plotter: ``temp:21.5,hum:40``, or ``21.5 40`` after a line of labels.

Source: Arduino IDE 2, "Using the Serial Plotter": parts separated by blanks, tabs or commas, each a value or
``label:value``; a line without any number labels the values of the lines after it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.header_cache import Memory
from stream_gru.connectors.decoders.names import checked_names
from stream_gru.connectors.decoders.parsing import MISSING, NUMBER
from stream_gru.connectors.decoders.record_batch import MAX_FIELDS, Record, Records, Shape, is_name
from stream_gru.connectors.decoders.text import decoded_lines
from stream_gru.core.types import DropReason, RawMessage, SampleBatch

_BETWEEN = re.compile(r"[ \t,]+")
# "temp: 21.5", as many sketches print it.
_LOOSE = re.compile(r":[ \t]+(?=[-+.\d])")


class PlotterDecoder:
    """Reads messages whose payload is lines for the plotter.

    ``fields`` of the source labels values until the device does.  Decision: a line of text that names no channel is a
    reject and labels nothing, as devices print their troubles where their values are expected.
    """

    def __init__(self, fields: Fields) -> None:
        self._shape = Shape(fields)
        self._names = list(checked_names(fields, fields.names)) if fields.names else None
        self.memory: Memory[list[str]] = Memory(list)

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        records = Records(self._shape)
        for message in raw:
            if records.faulty(message, besides=","):
                continue
            lines, rejected = decoded_lines(message)
            records.drop_all(rejected)
            for line in lines:
                text = line.removeprefix("\ufeff").strip(" \t\r,")
                found = self._record(text, message) if text else None
                if found is not None:
                    records.add(found, message)
        return records.batch()

    def _record(self, text: str, message: RawMessage) -> Record | DropReason | None:
        if ":" in text:
            parts = _BETWEEN.split(_LOOSE.sub(":", text))
            record: Record = {}
            for part in parts:
                label, colon, value = part.partition(":")
                if not colon or not label:
                    return DropReason.PARSE
                record[label] = value
            return record
        parts = _BETWEEN.split(text)
        if not any(NUMBER.fullmatch(part) or part.lower() in MISSING for part in parts):
            if self._shape.columns.isdisjoint(parts):
                return DropReason.MISSING_FIELD
            if len(parts) > MAX_FIELDS:
                return DropReason.TOO_MANY_FIELDS
            if not all(map(is_name, parts)):
                return DropReason.TOO_LARGE
            self.memory.put(message, parts)
            return None
        labels = self.memory.get(message) or self._names
        if labels is None or len(parts) < len(labels):
            return DropReason.MISSING_FIELD
        if len(parts) > len(labels):
            return DropReason.PARSE
        return dict(zip(labels, parts, strict=True))
