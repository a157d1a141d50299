"""Binary frames: COBS around a C struct and its checksum.  Needs cobs (``stream-gru[binary]``).

Source: S. Cheshire, M. Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM Transactions on Networking 7(2), 1999.
``crc16`` is CRC-16/CCITT-FALSE (polynomial 0x1021, initial value 0xFFFF), ``crc32`` that of zlib and Ethernet.
Decision: both follow the struct in little-endian order, the byte order of nearly every microcontroller.
"""

from __future__ import annotations

import binascii
import math
import struct
import zlib
from collections.abc import Callable

from cobs import cobs

from stream_gru.connectors.decoders.field_map import Fields, checked_names
from stream_gru.connectors.decoders.field_resolver import Record
from stream_gru.connectors.decoders.record_batch import RecordBatch, RecordDecoder
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
