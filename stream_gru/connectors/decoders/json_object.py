"""JSON objects, ``{"time": ..., "flow": 41.2, ...}``: one a message, an array of them, or one a line.

Source: RFC 8259.  null and absent keys mean missing.  Non-standard JSON (NaN, Infinity, 1e400, a trailing comma) and
too deep nesting are rejected.  Of a key that occurs twice the last one counts, as in most readers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.record_batch import RecordBatch, RecordDecoder
from stream_gru.connectors.decoders.text import BYTE_ORDER_MARK
from stream_gru.core.types import DropReason, RawMessage

_T = TypeVar("_T")
_NOT_FINITE = re.compile(r"(?<=[:,\[\s])-?(?:NaN|Infinity)(?=[,\]}\s])")


class JsonDecoder(RecordDecoder):
    """Reads messages whose payload is one object; see `FieldResolver` for where its fields are looked for."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self._decoder = msgspec.json.Decoder(dict[str, object])

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add the object."""
        text = batch.text(message)
        if text is not None:
            found = parsed(self._decoder, text)
            batch.add(found, message)


class JsonArrayDecoder(RecordDecoder):
    """Reads messages whose payload is an array of objects.  An unusable object rejects only itself."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self._decoder = msgspec.json.Decoder(list[object])

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add the objects."""
        text = batch.text(message)
        if text is None:
            return
        found = parsed(self._decoder, text)
        if isinstance(found, DropReason):
            batch.reject(found, message)
        else:
            batch.add_each(found, message)


class JsonLinesDecoder(RecordDecoder):
    """Reads messages whose payload is lines of one object each; blank lines hold no record."""

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        self._decoder = msgspec.json.Decoder(dict[str, object])

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add an object for each line."""
        for line in batch.lines(message):
            if line and not line.isspace():
                found = parsed(self._decoder, line.removeprefix(BYTE_ORDER_MARK))
                batch.add(found, message, line)


def parsed(decoder: msgspec.json.Decoder[_T], text: str) -> _T | DropReason:
    """Return what the text holds, or the reason to reject it."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        # Either another type than expected, or a number that no float64 holds.
        return DropReason.OUT_OF_RANGE if "out of range" in str(error) else DropReason.TYPE
    except RecursionError:
        return DropReason.TOO_DEEP
    except (msgspec.DecodeError, UnicodeError):
        return _unreadable(decoder, text)


def documents(
    decoder: msgspec.json.Decoder[_T], message: RawMessage, batch: RecordBatch
) -> Iterator[tuple[_T | DropReason, str]]:
    """Yield each JSON document of a payload with its line.

    A payload is one document on any number of lines (then the line is empty), or one document on each line.
    """
    payload_lines = batch.lines(message)
    complete = len(payload_lines) > message.payload.count(b"\n")  # no line was rejected
    lines = [text for line in payload_lines if (text := line.removeprefix(BYTE_ORDER_MARK).strip())]
    if len(lines) > 1 and complete:
        whole = parsed(decoder, "\n".join(lines))
        if not isinstance(whole, DropReason):
            yield whole, ""
            return
    for line in lines:
        found = parsed(decoder, line)
        yield found, line if len(lines) > 1 else ""


def _unreadable(decoder: msgspec.json.Decoder[Any], text: str) -> DropReason:
    """NON_FINITE where only ``NaN`` or ``Infinity``, which some libraries write, make a text unreadable; else PARSE."""
    without, count = _NOT_FINITE.subn("0", text)
    return DropReason.NON_FINITE if count and not isinstance(parsed(decoder, without), DropReason) else DropReason.PARSE
