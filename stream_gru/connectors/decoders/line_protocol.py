r"""InfluxDB's line protocol: ``pump,site=a flow=41.2,on=true,n=7i 1714564800000000000``.

Source: InfluxData, "Line protocol reference".  Blanks, commas and equals signs are escaped by a backslash, strings
stand in double quotes with ``\"`` and ``\\``; numbers are floats, or end in ``i`` (int64) or ``u`` (uint64).  Tags and
fields are one space of names, a field goes before a tag; ``_measurement`` is the measurement.  The time stands in
``time_unit`` (nanoseconds where that is ``iso``); without one, that of arrival counts.
"""

from __future__ import annotations

import math
import re

from stream_gru.connectors.decoders.field_map import OWN_TIME, Fields
from stream_gru.connectors.decoders.record_batch import Record, RecordBatch, RecordDecoder
from stream_gru.connectors.decoders.text import BYTE_ORDER_MARK
from stream_gru.core.timestamps import UNITS_NS
from stream_gru.core.types import DropReason, RawMessage

_MEASUREMENT = "_measurement"

# No part can match the first character of the next one, and a backslash before a separator never stands for itself.
# So there is one way to match a line, and the time to reject one is linear in its length.
_NAME = r"(?:[^,= \\]|\\[,= ]|\\(?![,= ]))+"
_VALUE = r'(?:"(?:[^"\\]|\\.)*"|[^," ]+)'
_LINE = re.compile(
    rf"(?P<measurement>(?:[^, \\]|\\[, ]|\\(?![, ]))+)(?P<tags>(?:,{_NAME}={_NAME})*)[ ]+"
    rf"(?P<fields>{_NAME}={_VALUE}(?:,{_NAME}={_VALUE})*)(?:[ ]+(?P<time>-?\d+))?[ ]*",
    re.ASCII,
)
_TAG = re.compile(rf",({_NAME})=({_NAME})")
_FIELD = re.compile(rf"({_NAME})=({_VALUE})")
_ESCAPED = re.compile(r"\\([,= ])")
_ESCAPED_QUOTE = re.compile(r'\\(["\\])')
_FLOAT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INTEGER = re.compile(r"-?\d+i|\d+u", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.ASCII | re.IGNORECASE)
_BOOLEANS = {
    **dict.fromkeys(("t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("f", "F", "false", "False", "FALSE"), False),
}
# No 64-bit number has more.
_DIGITS = 20
_BEYOND = 2**64


class LineProtocolDecoder(RecordDecoder):
    """Reads messages whose payload is lines of line protocol; blank lines and comments hold no record."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields.with_own_time())
        unit = fields.input.time_unit
        self._ns = 1 if unit == "iso" else UNITS_NS[unit]
        self._boot = fields.clock == "boot"

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add a record for each line."""
        for number, line in enumerate(batch.lines(message), 1):
            text = line.removeprefix(BYTE_ORDER_MARK).strip(" \t\r")
            if text and text[0] != "#":
                batch.add(self._record(text, message.arrival_ns), message, number)

    def _record(self, text: str, arrival_ns: int) -> Record | DropReason:
        found = _LINE.fullmatch(text)
        if found is None:
            return DropReason.PARSE
        measurement, tags, fields, time = found.groups()
        record: Record = {_MEASUREMENT: _unescaped(measurement)}
        for name, value in _TAG.findall(tags):
            record[_unescaped(name)] = _unescaped(value)
        for name, value in _FIELD.findall(fields):
            read = _value(value)
            if isinstance(read, DropReason):
                return read
            record[_unescaped(name)] = read
        if time is None:
            record[OWN_TIME] = None if self._boot or not arrival_ns else arrival_ns
        elif len(time) > _DIGITS:
            return DropReason.TIMESTAMP
        else:
            record[OWN_TIME] = int(time) * self._ns
        return record


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(r"\1", text) if "\\" in text else text


def _value(text: str) -> float | int | bool | str | DropReason:
    """A field's value, or the reason to reject its line."""
    if _FLOAT.fullmatch(text):
        number = float(text)
        return DropReason.OUT_OF_RANGE if math.isinf(number) else number
    if text[0] == '"':
        return _ESCAPED_QUOTE.sub(r"\1", text[1:-1])
    if _INTEGER.fullmatch(text):
        whole = int(text[:-1]) if len(text) <= _DIGITS + 2 else _BEYOND
        limits = (-(2**63), 2**63) if text[-1] == "i" else (0, 2**64)
        return whole if limits[0] <= whole < limits[1] else DropReason.OUT_OF_RANGE
    return _BOOLEANS.get(text, DropReason.NON_FINITE if _NOT_FINITE.fullmatch(text) else DropReason.PARSE)
