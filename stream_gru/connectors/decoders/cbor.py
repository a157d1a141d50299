"""CBOR: one map a message with the keys that JSON would have, or an array of such maps.

Source: RFC 8949.  Needs cbor2 (``stream-gru[binary]``).  Tags are not followed, as what they stand for (dates, regular
expressions, references) is no number: a tagged value is one of a wrong type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cbor2

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.record_batch import Records, Shape
from stream_gru.connectors.decoders.text import unreadable
from stream_gru.core.types import DropReason, RawMessage, SampleBatch

# The payload is read as the first of two items of an array.  When it is one whole item, the second is this text.
_PAIR = b"\x82"
_END = "end of payload 7d1c"
_AFTER = cbor2.dumps(_END)
# In cbor2's word for more arrays in arrays than it reads, several hundred.
_DEEP = "nesting depth"


class Tagged:
    """What stands in place of a tagged value: nothing that a field can be."""


_TAGGED = Tagged()


class _AnyTag(Mapping[int, Any]):
    """Decoders of all semantic tags there are and will be."""

    def __getitem__(self, tag: int) -> Any:
        return _tagged

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _tagged(*_: object) -> Tagged:
    return _TAGGED


_ANY_TAG = _AnyTag()


class CborDecoder:
    """Reads messages whose payload is one map, or an array of maps, each a record."""

    def __init__(self, fields: Fields) -> None:
        self._shape = Shape(fields)
        try:
            cbor2.loads(b"\xf6", semantic_decoders=_ANY_TAG)
        except TypeError as error:
            raise ImportError("cbor2 6 or newer is needed") from error

    def decode(self, raw: Sequence[RawMessage]) -> SampleBatch:
        """Decode messages in order."""
        records = Records(self._shape)
        for message in raw:
            if records.faulty(message, text=False):
                continue
            found = _read(message.payload)
            if type(found) is list:
                records.add_each(found, message)
            else:
                records.add(found, message)
        return records.batch()


def _read(payload: bytes) -> object:
    """What the payload holds, or a `DropReason`."""
    try:
        found, end = cbor2.loads(_PAIR + payload + _AFTER, semantic_decoders=_ANY_TAG)
    except cbor2.CBORDecodeError as error:
        if _DEEP in str(error):
            return DropReason.TOO_DEEP
        return DropReason.ENCODING if isinstance(error.__cause__, UnicodeDecodeError) else unreadable(payload)
    return found if end == _END else unreadable(payload)
