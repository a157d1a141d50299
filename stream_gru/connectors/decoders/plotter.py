"""Lines of the Arduino Serial Plotter: ``temp:21.5,hum:40``, or ``21.5 40`` after a line of labels.

Source: Arduino IDE 2, "Using the Serial Plotter": parts separated by blanks, tabs or commas, each a value or
``label:value``; a line without any number labels the values of the lines after it.
"""

from __future__ import annotations

import re

from stream_gru.connectors.decoders.field_map import Fields, checked_names
from stream_gru.connectors.decoders.field_resolver import MAX_FIELDS, Record, is_name
from stream_gru.connectors.decoders.header_cache import HeaderCache
from stream_gru.connectors.decoders.parsing import MISSING, NUMBER
from stream_gru.connectors.decoders.record_batch import RecordBatch, RecordDecoder
from stream_gru.connectors.decoders.text import BYTE_ORDER_MARK
from stream_gru.core.types import DropReason, RawMessage

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
        for line in batch.lines(message):
            text = line.removeprefix(BYTE_ORDER_MARK).strip(" \t\r,")
            found = self._record(text, message) if text else None
            if found is not None:
                batch.add(found, message, line)

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
