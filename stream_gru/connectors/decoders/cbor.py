"""CBOR: one map a message with the keys that JSON would have, or an array of such maps.

Source: RFC 8949.  Needs cbor2 (``stream-gru[binary]``).  Tags (dates, regular expressions, references) are not
interpreted, since none of them is a number: a tagged value has the wrong type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cbor2

from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.record_batch import RecordBatch, RecordDecoder
from stream_gru.connectors.decoders.text import unreadable
from stream_gru.core.types import DropReason, RawMessage

# The payload is read as the first of two items of an array.  If it is exactly one item, the second is this text.
_PAIR = b"\x82"
_END = "end of payload 7d1c"
_AFTER = cbor2.dumps(_END)
# Part of cbor2's error message for input nested several hundred levels deep.
_DEEP = "nesting depth"


class Tagged:
    """Stands in place of a tagged value: a type that no field has."""


_TAGGED = Tagged()


class _AnyTag(Mapping[int, Any]):
    """A decoder for every semantic tag."""

    def __getitem__(self, tag: int) -> Any:
        return _tagged

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


def _tagged(*_: object) -> Tagged:
    return _TAGGED


_ANY_TAG = _AnyTag()


class CborDecoder(RecordDecoder):
    """Reads messages whose payload is one map, or an array of maps, each a record."""

    separators = None

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        try:
            cbor2.loads(b"\xf6", semantic_decoders=_ANY_TAG)
        except TypeError as error:
            raise ImportError("cbor2 6 or newer is needed") from error

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add the map or the maps."""
        found = _parsed(message.payload)
        if type(found) is list:
            batch.add_each(found, message)
        else:
            batch.add(found, message)


def _parsed(payload: bytes) -> object:
    """Return what the payload holds, or the reason to reject it."""
    try:
        found, end = cbor2.loads(_PAIR + payload + _AFTER, semantic_decoders=_ANY_TAG)
    except cbor2.CBORDecodeError as error:
        if _DEEP in str(error):
            return DropReason.TOO_DEEP
        return DropReason.ENCODING if isinstance(error.__cause__, UnicodeDecodeError) else unreadable(payload)
    return found if end == _END else unreadable(payload)
