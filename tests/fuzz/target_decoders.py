"""Decoders: any bytes become rows or rejects."""

from __future__ import annotations

import binascii
import struct
import zlib
from collections.abc import Iterable
from dataclasses import replace
from random import Random
from typing import Literal

import numpy as np
from cobs import cobs
from msgspec.structs import replace as replace_keys

from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import load_decoder
from stream_gru.core.concatenate import concatenate
from stream_gru.core.errors import DataError
from stream_gru.core.timestamps import LIMIT_NS
from stream_gru.core.types import STREAM_ID, DropReason, RawMessage, SampleBatch
from tests.support.batches import NOON_NS

CHANNELS = ("flow", "level")
NAMES = ("time", "pump", "mode", "restart", "run", "n", "flow", "level")
STRUCT = "<d8s8s?8sqff"
_STRUCT = struct.Struct(STRUCT)
HEADERS = (b"", b"time,flow,level", ",".join(NAMES).encode(), b"flow;level;time")
UNITS = ("iso", "s", "ms", "us", "ns")
ALL = {"stream": "pump", "label": "mode", "reset": "restart", "episode": "run", "device_seq": "n"}
TOPICS = ("", "", "", "", "", "", "flow", "level", "unknown")
CONFIGURATIONS = 64
CHECKSUMS: tuple[Literal["none", "crc16", "crc32"], ...] = ("none", "crc16", "crc32")
KEYS = ("p1", "p1", "p1", "p2", "p1", "p2", "größe", "p1", "p1", "", "x" * 129)
# Formats in which a message is exactly one record.
ONE_EACH = frozenset({"json", "number", "binary"})
AT_LEAST_ONE = ONE_EACH | {"json_array", "cbor"}
# For these a whole input may be invalid.
MAY_REFUSE_ALL = frozenset({"csv", "parquet"})


class DecoderTarget:
    """One format, read with many configurations; each case has a decoder of its own."""

    words = (
        *(name.encode() for name in NAMES), b'"time":', b'"flow":', b'"v":', b'"fields":{', b'"tags":', b'"n":',
        b'"bn":',
        b'"bt":', b'"t":', b'"vs":', b'"u":', b'"bver":11', b"[", b"]", b"{", b"}", b",", b":", b"=", b" ",
        b";", b"\\", b'""',
        b"flow=", b"flow:", b"1i", b"2u", b"#", b"\x9f", b"\xff", b"\xbf", b"\x5f", b"\xf9\x7c\x00",
        b"\xfb\x7f\xf0\0\0\0\0\0\0",
        b"\xc2\x49\x01\0\0\0\0\0\0\0\0", b"\xd8\x1c\x80", b"\x1b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x9b\x7f\xff\xff\xff",
        b"ON", b"unavailable",
    )  # fmt: skip

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._fields: dict[int, Fields] = {}

    def check(self, pieces: list[bytes], variant: int) -> Iterable[str]:
        """Decode; check that nothing is raised, the batch is sound, and messages decoded alone give the same."""
        choose = variant % CONFIGURATIONS
        fields = self._fields.get(choose)
        if fields is None:
            fields = self._fields[choose] = _fields(self._kind, choose)
        if self._kind == "binary" and variant >> 31:
            pieces = [_framed(piece, fields.checksum) for piece in pieces]
        messages = [_message(piece, variant // CONFIGURATIONS + place) for place, piece in enumerate(pieces)]
        try:
            batch = load_decoder(self._kind, fields).decode(messages)
        except DataError:
            if self._kind not in MAY_REFUSE_ALL:
                raise
            return ["refused as a whole"]
        check_sound(batch, len(CHANNELS))
        _check_rejected(batch, messages)
        self._check_received(batch, messages)
        if len(messages) > 1:
            again = load_decoder(self._kind, fields)
            alone = concatenate([again.decode([message]) for message in messages], len(CHANNELS))
            assert batch_content(alone) == batch_content(batch), "decoded together and one by one"
        return [reason.text for reason in batch.rejected_counts] + (["applied"] if len(batch) else [])

    def _check_received(self, batch: SampleBatch, messages: list[RawMessage]) -> None:
        if self._kind in ONE_EACH:
            assert batch.received == len(messages), "a message is one record"
        elif self._kind in AT_LEAST_ONE:
            assert batch.received >= len(messages), "a message is at least one record"
        else:
            blank = sum(1 for m in messages if m.arrival_ns and not m.payload.strip() and not m.header)
            assert batch.received >= blank, "a live message that is blank is a reject"
        if self._kind != "parquet":  # with compressed columns a payload may hold many rows
            assert batch.received <= sum(len(m.payload) + 1 for m in messages), "more records than bytes"


def check_sound(batch: SampleBatch, channels: int) -> None:
    """Columns have the length and type of `SampleBatch`; numbers are finite or missing, names are stream ids."""
    n = len(batch)
    assert batch.values.shape == (n, channels)
    assert batch.values.dtype == np.float32
    assert not np.isinf(batch.values).any(), "an infinite value"
    assert batch.stream_index.dtype == np.int32
    assert batch.time_ns.dtype == np.int64
    assert len(batch.stream_index) == n
    if n:
        assert 0 <= batch.stream_index.min() <= batch.stream_index.max() < len(batch.stream_names)
        used = {batch.stream_names[code] for code in np.unique(batch.stream_index).tolist()}
        assert all(STREAM_ID.fullmatch(name) for name in used), "a name that is no stream id"
        assert int(np.abs(batch.time_ns).max()) < LIMIT_NS
        if batch.label is not None:
            assert -1 <= batch.label.min() <= batch.label.max() < len(batch.labels)
    for column in (batch.device_seq, batch.label, batch.reset, batch.episode, batch.arrival_ns):
        assert column is None or len(column) == n
    assert all(type(entry.reason) is DropReason and entry.records > 0 for entry in batch.rejected)


def _check_rejected(batch: SampleBatch, messages: list[RawMessage]) -> None:
    """Each message has at most one entry per reason, with a line or an item that is where it should be."""
    numbers = {id(message): number for number, message in enumerate(messages)}
    assert len({(numbers[id(entry.message)], entry.reason) for entry in batch.rejected}) == len(batch.rejected)
    for entry in batch.rejected:
        assert type(entry.line) is bytes
        assert entry.message is not None
        assert entry.row >= 1
        if entry.offset is None:
            assert not entry.line
        else:
            assert entry.message.payload.startswith(entry.line, entry.offset), "another line"
        if entry.line and not entry.message.payload.lstrip().startswith(b"["):  # no list of JSON
            assert entry.message.payload.count(b"\n", 0, entry.offset) == entry.row - 1
            assert b"\n" not in entry.line


def batch_content(batch: SampleBatch) -> tuple[object, ...]:
    """The content of a batch, whatever the order of its tables."""
    labels = (*batch.labels, None)
    return (
        [batch.stream_names[code] for code in batch.stream_index.tolist()],
        batch.time_ns.tobytes(),
        batch.values.tobytes(),
        None if batch.device_seq is None or not len(batch) else batch.device_seq.tobytes(),
        None if batch.label is None else [labels[code] for code in batch.label.tolist()] or None,
        None if batch.reset is None or not len(batch) else batch.reset.tobytes(),
        None if batch.episode is None or not len(batch) else batch.episode.tobytes(),
        {(id(entry.message), entry.reason): (entry.records, entry.row, entry.offset) for entry in batch.rejected},
    )


def _framed(inside: bytes, checksum: str) -> bytes:
    """A valid frame around any bytes, which mutation is unlikely to produce."""
    inside = inside.ljust(_STRUCT.size, b"\x01")[: _STRUCT.size]
    if checksum == "crc16":
        inside += binascii.crc_hqx(inside, 0xFFFF).to_bytes(2, "little")
    elif checksum == "crc32":
        inside += zlib.crc32(inside).to_bytes(4, "little")
    return bytes(cobs.encode(inside))


def _message(payload: bytes, choose: int) -> RawMessage:
    live = choose % 3 > 0
    return RawMessage(
        payload,
        KEYS[choose % len(KEYS)],
        HEADERS[choose // 7 % len(HEADERS)] if choose % 2 else b"",
        NOON_NS + choose % 10**9 if live else 0,
        channel=TOPICS[choose // 5 % len(TOPICS)] if live else "",
        source="plant",
    )


def _fields(kind: str, choose: int) -> Fields:
    """One of `CONFIGURATIONS`: 0 is the plain one, the others are random."""
    chance = Random(choose)

    def once_in(times: int) -> bool:
        return choose > 0 and chance.randrange(times) == 0

    wanted = dict(ALL) if once_in(2) else {}
    if once_in(4):
        wanted["time"] = ""
    unit = chance.choice(UNITS) if once_in(2) else "iso"
    fields = Fields(InputConfig(time_unit=unit, **wanted), CHANNELS, CHANNELS)  # type: ignore[arg-type]
    if once_in(4):
        fields = replace(fields, scale=(1e30, -0.5), offset=(0.0, 1.0), units=("Cel", ""))
    if once_in(4) and fields.input.time and unit != "iso":
        fields = replace(fields, clock="boot")
    if kind == "binary":
        fields = replace(fields, names=NAMES, struct=STRUCT, checksum=chance.choice(CHECKSUMS))
        return replace(fields, input=replace_keys(fields.input, time_unit="s" if fields.clock == "epoch" else unit))
    if kind in ("csv", "json_vector", "plotter") and once_in(2):
        return replace(fields, names=CHANNELS if kind == "json_vector" else NAMES)
    return replace(fields, names=("flow",)) if kind == "number" and once_in(2) else fields
