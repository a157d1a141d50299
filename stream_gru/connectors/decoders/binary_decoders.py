"""Binary messages: COBS frames of a C struct with its checksum, and CBOR maps.  Needs ``stream-gru[binary]``.

COBS: S. Cheshire, M. Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM Transactions on Networking 7(2), 1999.
``crc16`` is CRC-16/CCITT-FALSE (polynomial 0x1021, initial value 0xFFFF), ``crc32`` that of zlib and Ethernet.
Decision: both follow the struct in little-endian order, the byte order of nearly every microcontroller.

CBOR (RFC 8949): one map a message with the keys that JSON would have, or an array of such maps.  Tags (dates, regular
expressions, references) are not interpreted, since none of them is a number: a tagged value has the wrong type.
"""

from __future__ import annotations

import binascii
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cbor2
from cobs import cobs

from stream_gru.connectors.decoders.field_map import Fields, checked_names
from stream_gru.connectors.decoders.record_batch import Record, RecordBatch, RecordDecoder
from stream_gru.connectors.decoders.text import unreadable
from stream_gru.core.errors import ConfigError
from stream_gru.core.types import DropReason, RawMessage

_MAX_BYTES = 65_536
_CHECKSUMS: dict[str, tuple[int, Callable[[bytes], int]]] = {
    "none": (0, lambda data: 0),
    "crc16": (2, lambda data: binascii.crc_hqx(data, 0xFFFF)),
    "crc32": (4, zlib.crc32),
}


class BinaryDecoder(RecordDecoder):
    """Reads messages whose payload is one COBS frame, without the zero byte between frames.

    ``struct`` of the source is the format of the frame's content, ``fields`` names its members (``""``: ignored).  A
    float that is NaN is missing; text ends at its first zero byte.  Raises ConfigError.
    """

    separators = None

    def __init__(self, fields: Fields) -> None:
        super().__init__(fields)
        if not fields.struct:
            raise ConfigError('source.input: struct: expected the format of a frame such as "<Iff", got none')
        try:
            self._struct = struct.Struct(fields.struct)
        except (struct.error, ValueError) as error:
            raise ConfigError(f"source.input: struct: {error}, got {fields.struct!r}") from error
        if self._struct.size > _MAX_BYTES:
            raise ConfigError(f"source.input: struct: expected at most {_MAX_BYTES} bytes, got {self._struct.size}")
        members = len(self._struct.unpack(bytes(self._struct.size)))
        self._names = checked_names(fields, complete=True)
        if members != len(self._names):
            raise ConfigError(
                f"source.input: fields: expected {members} names for struct {fields.struct!r}, got {len(self._names)}"
            )
        self._crc_size, self._crc = _CHECKSUMS[fields.checksum]

    def read(self, message: RawMessage, batch: RecordBatch) -> None:
        """Add the record of the frame."""
        batch.add(self._record(message.payload), message)

    def _record(self, payload: bytes) -> Record | DropReason:
        try:
            frame = cobs.decode(payload)
        except cobs.DecodeError:
            return unreadable(payload)
        if len(frame) != self._struct.size + self._crc_size:
            return unreadable(payload)
        inside, crc = frame[: self._struct.size], frame[self._struct.size :]
        if int.from_bytes(crc, "little") != self._crc(inside):
            return DropReason.CHECKSUM
        record: Record = {}
        for name, value in zip(self._names, self._struct.unpack(inside), strict=True):
            if isinstance(value, float) and math.isnan(value):
                value = None
            elif isinstance(value, bytes):
                try:
                    value = value.partition(b"\0")[0].decode()
                except UnicodeDecodeError:
                    return DropReason.ENCODING
            record[name] = value
        return record


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
