"""JSON: one object a message, ``{"time": ..., "flow": 41.2, ...}``; null and absent keys mean missing.

Source: RFC 8259.  What a device writes beside the standard (NaN, Infinity, 1e400, a comma at the end) is refused, and
so is a nesting too deep.  Of a key that comes twice the last one counts, as most readers have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.record_batch import Records, Shape
from stream_gru.connectors.decoders.text import decoded_lines
from stream_gru.core.types import DropReason, RawMessage, SampleBatch

_T = TypeVar("_T")
_NO_NUMBERS = re.compile(r"(?<=[:,\[\s])-?(?:NaN|Infinity)(?=[,\]}\s])")


class JsonDecoder:
    """Reads messages whose payload is one object; see `Shape` for where its fields are looked for."""

    def __init__(self, fields: Fields) -> None:
        self._shape = Shape(fields)
        self._decoder = msgspec.json.Decoder(dict[str, object])

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        records = Records(self._shape)
        for message in raw:
            if records.faulty(message):
                continue
            text = records.text(message)
            if text is not None:
                record = parsed(self._decoder, text)
                records.add(record, message)
        return records.batch()


class JsonArrayDecoder:
    """Reads messages whose payload is an array of objects.  An object that cannot be used drops only itself."""

    def __init__(self, fields: Fields) -> None:
        self._shape = Shape(fields)
        self._decoder = msgspec.json.Decoder(list[object])

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        records = Records(self._shape)
        for message in raw:
            if records.faulty(message):
                continue
            text = records.text(message)
            if text is None:
                continue
            found = parsed(self._decoder, text)
            if isinstance(found, DropReason):
                records.drop(found)
            else:
                records.add_each(found, message)
        return records.batch()


def parsed(decoder: msgspec.json.Decoder[_T], text: str) -> _T | DropReason:
    """What the text says, or why it says nothing."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        # Either another type than asked for, or a number that no float64 holds.
        return DropReason.OUT_OF_RANGE if "out of range" in str(error) else DropReason.TYPE
    except RecursionError:
        return DropReason.TOO_DEEP
    except (msgspec.DecodeError, UnicodeError):
        return _why_unreadable(decoder, text)


def _why_unreadable(decoder: msgspec.json.Decoder[Any], text: str) -> DropReason:
    """NON_FINITE where nothing but ``NaN`` and ``Infinity``, which some libraries write, makes a text unreadable."""
    without, count = _NO_NUMBERS.subn("0", text)
    return DropReason.NON_FINITE if count and not isinstance(parsed(decoder, without), DropReason) else DropReason.PARSE


def documents(decoder: msgspec.json.Decoder[_T], message: RawMessage, records: Records) -> Iterator[_T | DropReason]:
    """What a payload says that is one text of JSON, over any number of lines, or one on each line."""
    lines, rejected = decoded_lines(message)
    records.drop_all(rejected)
    lines = [text for line in lines if (text := line.removeprefix("\ufeff").strip())]
    if len(lines) > 1 and not rejected:
        whole = parsed(decoder, "\n".join(lines))
        if not isinstance(whole, DropReason):
            yield whole
            return
    for line in lines:
        found = parsed(decoder, line)
        yield found
