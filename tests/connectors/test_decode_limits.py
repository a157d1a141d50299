"""Kinds of bad input: each is rejected at its limit for its reason, and the good record after it is applied."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.decoders.record_batch import MAX_DEPTH, MAX_FIELDS, MAX_NAME_BYTES, MAX_RECORDS
from stream_gru.connectors.registry import load_decoder
from stream_gru.core.timestamps import to_ns
from stream_gru.core.types import DropReason, RawMessage, SampleBatch
from tests.fuzz.target_decoders import check_sound
from tests.support.batches import NOON_NS

BASE: dict[str, Any] = {"dev": "p1", "time": "2024-05-01T12:00:00Z"}
LAST = 7.0


def device_fields(kind: str, **options: str) -> Fields:
    """Two channels, time and stream."""
    wanted = InputConfig(**{"stream": "" if kind == "senml" else "dev", **options})  # type: ignore[arg-type]
    names = ("time", "dev", "flow", "level") if kind == "csv" else ()
    return Fields(wanted, ("flow", "level"), ("flow", "level"), names=names)


def decode_live(kind: str, payloads: Sequence[bytes], arrival_ns: int = NOON_NS, **options: str) -> SampleBatch:
    """Decode live messages of one device."""
    messages = [RawMessage(payload, "p1", arrival_ns=arrival_ns, source="plant") for payload in payloads]
    return load_decoder(kind, device_fields(kind, **options)).decode(messages)


def encoded_record(kind: str, record: dict[str, Any]) -> bytes:
    """A record in a format; values of text formats are written unchanged."""
    if kind == "cbor":
        import cbor2

        return bytes(cbor2.dumps(record))
    if kind == "csv":
        return ",".join(str(record.get(name, "")) for name in ("time", "dev", "flow", "level")).encode()
    if kind == "plotter":
        return ",".join(f"{name}:{value}" for name, value in record.items()).encode()
    if kind == "line_protocol":
        inside = {name: value for name, value in record.items() if name not in BASE}
        texts = ",".join(f"{name}={value}" for name, value in inside.items())
        return f"m,dev={record['dev']} {texts} {to_ns(record['time'])}".encode()
    if kind == "senml":
        pack = [{"bn": record["dev"] + ":", "bt": to_ns(record["time"]) // 10**9}]
        return json.dumps([*pack, *({"n": n, "v": v} for n, v in record.items() if n not in BASE)]).encode()
    if kind == "json_vector":
        beside = {name: value for name, value in record.items() if name not in ("flow", "level")}
        return json.dumps({**beside, "v": [record.get("flow"), record.get("level")]}).encode()
    return json.dumps([record] if kind == "json_array" else record).encode()


def rejected(kind: str, bad: bytes, arrival_ns: int = NOON_NS, **options: str) -> dict[DropReason, int]:
    """The reject counts of ``bad``; the good record after it is the only row."""
    after = encoded_record(kind, {**BASE, "flow": LAST, "level": 1})
    between = b"\n" if kind in ("jsonl", "csv", "plotter", "line_protocol") else None
    payloads = [bad + between + after] if between and bad.strip() else [bad, after]
    batch = decode_live(kind, payloads, arrival_ns, **options)
    assert batch.values.tolist() == [[LAST, 1.0]]
    assert batch.stream_names[int(batch.stream_index[0])] == "p1"
    return batch.rejected_counts


JSON = ("json", "jsonl", "json_array")
OBJECTS = (*JSON, "json_vector", "cbor")
ALL = (*OBJECTS, "senml", "csv", "plotter", "line_protocol")


def nested(depth: int) -> object:
    """Nested lists; with the record around them there is one more level."""
    value: object = 0
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize("kind", OBJECTS)
def test_depth(kind: str) -> None:
    """Sixteen levels are read; a seventeenth is too deep, as are levels that would exhaust the stack."""
    good = {**BASE, "flow": 1, "level": 2, "x": nested(MAX_DEPTH)}
    assert len(decode_live(kind, [encoded_record(kind, good)])) == 1
    assert rejected(kind, encoded_record(kind, {**good, "x": nested(MAX_DEPTH + 1)})) == {DropReason.TOO_DEEP: 1}
    assert rejected(kind, encoded_record(kind, {**good, "x": nested(300)})) == {DropReason.TOO_DEEP: 1}
    deep = b"\x81" * 5000 + b"\x80" if kind == "cbor" else b'{"x":' * 5000 + b"0" + b"}" * 5000
    assert rejected(kind, b"[" + deep + b"]" if kind == "json_array" else deep) == {DropReason.TOO_DEEP: 1}


def test_depth_of_a_pack() -> None:
    """Values of unused fields count, too."""
    bad = json.dumps([{"n": "flow", "v": 1, "x": nested(MAX_DEPTH + 1)}]).encode()
    assert rejected("senml", bad) == {DropReason.TOO_DEEP: 1}


@pytest.mark.parametrize("kind", [*OBJECTS, "plotter", "line_protocol"])
def test_fields(kind: str) -> None:
    """256 fields are read, one more is too many."""
    inside = {"json_vector": 1, "line_protocol": -1}.get(kind, 0)  # v stands for two; the measurement is one
    full = {**BASE, "flow": 1, "level": 2, **{f"k{i}": i for i in range(MAX_FIELDS - 4 + inside)}}
    if kind == "json_vector":
        full = {**full, "x": 0}
    assert len(decode_live(kind, [encoded_record(kind, full)])) == (0 if kind == "json_vector" else 1)
    assert rejected(kind, encoded_record(kind, {**full, "more": 1})) == {DropReason.TOO_MANY_FIELDS: 1}


@pytest.mark.parametrize("kind", ["csv", "plotter"])
def test_names_that_a_device_sends(kind: str) -> None:
    """The headers that are kept are bounded, in the number of names and in their length."""
    mark, plain = ("," if kind == "csv" else " "), replace(device_fields(kind, time="", stream=""), names=())
    names = ["flow", "level", *(f"k{i}" for i in range(MAX_FIELDS - 1))]
    for bad, reason in ((names, DropReason.TOO_MANY_FIELDS), (["flow", "k" * 257], DropReason.TOO_LARGE)):
        lines = [mark.join(bad), "flow" + mark + "level", "7" + mark + "1"]
        batch = load_decoder(kind, plain).decode(
            [RawMessage(line.encode(), "p1", arrival_ns=NOON_NS) for line in lines]
        )
        assert (batch.values.tolist(), batch.rejected_counts) == ([[7.0, 1.0]], {reason: 1})


@pytest.mark.parametrize("kind", [*OBJECTS, "plotter", "line_protocol"])
@pytest.mark.parametrize("letter", ["k", "ö"])
def test_length_of_names(kind: str, letter: str) -> None:
    """A name has at most 256 bytes in UTF-8."""
    name = letter * (MAX_NAME_BYTES // len(letter.encode()))
    record = {**BASE, "flow": 1, "level": 2}
    assert len(decode_live(kind, [encoded_record(kind, {**record, name: 1})])) == 1
    assert rejected(kind, encoded_record(kind, {**record, name + letter: 1})) == {DropReason.TOO_LARGE: 1}


@pytest.mark.parametrize("kind", OBJECTS)
def test_nul_in_a_name(kind: str) -> None:
    """NUL is rejected in names, also where it is escaped."""
    assert rejected(kind, encoded_record(kind, {**BASE, "flow": 1, "level": 2, "a\0": 1})) == {DropReason.ENCODING: 1}


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\0"], ids=repr)
def test_encoding(kind: str, bad: bytes) -> None:
    """Strict UTF-8 without NUL: no surrogates, no overlong forms."""
    if kind == "cbor":
        bad = b"\xa1\x64flow\x63" + bad.rjust(3, b"a") if bad != b"\0" else encoded_record(kind, {**BASE, "a\0": 1})
    else:
        bad = encoded_record(kind, {**BASE, "flow": 1, "level": 2}) + bad
    assert rejected(kind, bad) == {DropReason.ENCODING: 1}


@pytest.mark.parametrize("kind", [*ALL, "number"])
@pytest.mark.parametrize("packed", [gzip.compress, zlib.compress, bz2.compress, lzma.compress])
def test_compressed_payloads(kind: str, packed: Callable[[bytes], bytes]) -> None:
    """A compressed payload is one reject, however many line ends its bytes contain."""
    bad = packed(b'{"flow": 1}\n' * 1000 + bytes(range(256)))
    if kind == "number":
        decoder = load_decoder(kind, Fields(InputConfig(), ("flow",)))
        batch = decoder.decode([RawMessage(payload, arrival_ns=NOON_NS, key="p") for payload in (bad, b"7")])
        assert (batch.values.tolist(), batch.rejected_counts) == ([[7.0]], {DropReason.ENCODING: 1})
        return
    batch = decode_live(kind, [bad, encoded_record(kind, {**BASE, "flow": LAST, "level": 1})])
    assert (batch.values.tolist(), batch.rejected_counts) == ([[LAST, 1.0]], {DropReason.ENCODING: 1})


@pytest.mark.parametrize("kind", OBJECTS)
def test_types(kind: str) -> None:
    """Text that is no number is a parse error, a bool or a list is a wrong type."""
    for value, reason in (
        (True, DropReason.TYPE),
        ([1], DropReason.TYPE),
        ({}, DropReason.TYPE),
        ("x", DropReason.PARSE),
    ):
        assert rejected(kind, encoded_record(kind, {**BASE, "flow": 2, "level": value})) == {reason: 1}


@pytest.mark.parametrize("kind", ALL)
def test_a_missing_stream(kind: str) -> None:
    """A record without the configured stream lacks a field."""
    record = {**BASE, "dev": "", "flow": 1, "level": 2}
    if kind == "line_protocol":
        bad = b"m flow=1,level=2"
    elif kind == "senml":
        return  # there the stream is that of the message
    else:
        bad = encoded_record(kind, record)
    assert rejected(kind, bad) == {DropReason.MISSING_FIELD: 1}


NUMBERS = [
    ("inf", DropReason.NON_FINITE), ("-Infinity", DropReason.NON_FINITE), ("1e39", DropReason.OUT_OF_RANGE),
    ("-3.5e38", DropReason.OUT_OF_RANGE), ("1e400", DropReason.OUT_OF_RANGE),
    ("9007199254740993", DropReason.OUT_OF_RANGE),
    ("-9007199254740993", DropReason.OUT_OF_RANGE), ("1" + "0" * 30, DropReason.OUT_OF_RANGE),
    ("9" * 400, DropReason.OUT_OF_RANGE),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason"), NUMBERS, ids=lambda value: str(value)[:20])
@pytest.mark.parametrize("kind", ["csv", "plotter", *JSON, "json_vector"])
def test_numbers(kind: str, text: str, reason: DropReason) -> None:
    """Infinite numbers, those beyond float32 and inexact whole numbers are rejected, never rounded or clipped."""
    bad = encoded_record(kind, {**BASE, "flow": 424242, "level": 2}).replace(b"424242", text.encode())
    if text == "inf" and kind not in ("csv", "plotter"):
        bad = bad.replace(b"inf", b"Infinity")
    assert rejected(kind, bad) == {reason: 1}


@pytest.mark.parametrize("text", ["9007199254740992", "-9007199254740992", "3.4e38", "1e17", "9007199254740993.5"])
@pytest.mark.parametrize("kind", ["csv", *JSON])
def test_numbers_at_the_limit(kind: str, text: str) -> None:
    """2**53 is exact, and a fraction may be as large as the largest float32."""
    good = encoded_record(kind, {**BASE, "flow": 424242, "level": 2}).replace(b"424242", text.encode())
    assert decode_live(kind, [good]).values.tolist() == [[float(np.float32(text)), 2.0]]


@pytest.mark.parametrize("kind", ["csv", "plotter", "number"])
def test_leading_zeros(kind: str) -> None:
    """Only the digits after leading zeros count."""
    decoder = load_decoder(kind, Fields(InputConfig(time=""), ("flow",), names=("flow",)))
    texts = [b"+" + b"0" * 5000 + b"9" * 17, b"-" + b"0" * 5000 + b"9007199254740992", b"7"]
    batch = decoder.decode([RawMessage(text, "p1", arrival_ns=NOON_NS) for text in texts])
    assert (batch.values.tolist(), batch.rejected_counts) == ([[-(2.0**53)], [7.0]], {DropReason.OUT_OF_RANGE: 1})


@pytest.mark.parametrize("where", ["fields", "tags"])
def test_limits_inside(where: str) -> None:
    """The limits hold for the inner objects of Telegraf's JSON, too."""
    inside = {"flow": 1, **{f"k{i}": i for i in range(MAX_FIELDS)}}
    assert rejected("json", encoded_record("json", {**BASE, where: inside})) == {DropReason.TOO_MANY_FIELDS: 1}
    assert rejected("json", encoded_record("json", {**BASE, where: {"flow": 1, "k" * 257: 1}})) == {
        DropReason.TOO_LARGE: 1
    }


def test_numbers_of_bytes() -> None:
    """CBOR and frames can hold infinities, which are rejected, and NaN, which is a missing value."""
    bad = encoded_record("cbor", {**BASE, "flow": float("-inf"), "level": 2})
    assert rejected("cbor", bad) == {DropReason.NON_FINITE: 1}
    assert rejected("cbor", encoded_record("cbor", {**BASE, "flow": 2**53 + 1, "level": 2})) == {
        DropReason.OUT_OF_RANGE: 1
    }
    assert np.isnan(
        decode_live("cbor", [encoded_record("cbor", {**BASE, "flow": float("nan"), "level": 2})]).values[0, 0]
    )
    from cobs import cobs

    decoder = load_decoder(
        "binary", Fields(InputConfig(time=""), ("flow",), names=("flow",), struct="<f", checksum="none")
    )
    frames = [cobs.encode(struct.pack("<f", value)) for value in (float("inf"), 7.0)]
    batch = decoder.decode([RawMessage(frame, "p1", arrival_ns=NOON_NS) for frame in frames])
    assert (batch.values.tolist(), batch.rejected_counts) == ([[7.0]], {DropReason.NON_FINITE: 1})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"nan", DropReason.NON_FINITE),
        (b"-inf", DropReason.NON_FINITE),
        *((text.encode(), why) for text, why in NUMBERS[3:]),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bare_numbers(text: bytes, reason: DropReason) -> None:
    """A bare number that is not finite is rejected, not read as missing."""
    decoder = load_decoder("number", Fields(InputConfig(), ("flow",)))
    batch = decoder.decode([RawMessage(payload, "p1", arrival_ns=NOON_NS) for payload in (text, b"7")])
    assert (batch.values.tolist(), batch.rejected_counts) == ([[7.0]], {reason: 1})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("NaN", DropReason.NON_FINITE),
        ("1e400", DropReason.OUT_OF_RANGE),
        ("9223372036854775808i", DropReason.OUT_OF_RANGE),
        ("9007199254740993i", DropReason.OUT_OF_RANGE),
        ("9" * 5000 + "i", DropReason.OUT_OF_RANGE),
        ("1.5i", DropReason.PARSE),
    ],
)
def test_numbers_of_line_protocol(value: str, reason: DropReason) -> None:
    """64-bit integers that float64 cannot represent are out of range, too."""
    assert rejected("line_protocol", f"m,dev=p1 flow={value} {NOON_NS}".encode()) == {reason: 1}


def test_scale_does_not_hide_a_number_that_is_not_exact() -> None:
    """The number is checked as it arrived, and again after scaling."""
    scaled = replace(device_fields("json"), scale=(1e-9, 1e38), offset=(0.0, 0.0))
    records = [
        {**BASE, "flow": 2**53 + 1, "level": 1},
        {**BASE, "flow": 1, "level": 10},
        {**BASE, "flow": 1e9, "level": 1},
    ]
    messages = [RawMessage(json.dumps(record).encode(), "p1", arrival_ns=NOON_NS) for record in records]
    batch = load_decoder("json", scaled).decode(messages)
    assert (len(batch), batch.rejected_counts) == (1, {DropReason.OUT_OF_RANGE: 2})


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("time", ["1999-12-31T23:59:59Z", "2024-05-02T12:00:01Z", "1970-01-01T00:00:10Z"])
def test_timestamps(kind: str, time: str) -> None:
    """Times before 2000 or more than a day after their arrival are rejected."""
    if kind == "senml" and time < "1980":
        return  # there such a time is relative to the arrival
    assert rejected(kind, encoded_record(kind, {**BASE, "time": time, "flow": 1, "level": 2})) == {
        DropReason.TIMESTAMP: 1
    }


def test_timestamps_at_the_limit() -> None:
    """The first instant of 2000 and one day ahead are accepted; a recording, without arrivals, may be of any year."""
    times = ["2000-01-01T00:00:00Z", "2024-05-02T12:00:00Z"]
    assert len(decode_live("json", [encoded_record("json", {**BASE, "time": time, "flow": 1}) for time in times])) == 2
    assert (
        len(decode_live("json", [encoded_record("json", {**BASE, "time": "1970-01-01", "flow": 1})], arrival_ns=0)) == 1
    )


def test_a_gateway_without_a_clock_checks_no_times() -> None:
    """Until the gateway's clock is set (a board without a battery boots in 1970), device times are accepted."""
    assert len(decode_live("json", [encoded_record("json", {**BASE, "flow": 1})], arrival_ns=10**9)) == 1


@pytest.mark.parametrize("name", ["+", "#", "$SYS", "a+b", "a\tb", "größe", "x" * 129, "a\x1b[2J", "<b>", "a\u202eb"])
@pytest.mark.parametrize("kind", ["json", "cbor"])
def test_stream_ids(kind: str, name: str) -> None:
    """A stream id is 1 to 128 characters of A-Z a-z 0-9 _ . : / - and blank."""
    assert rejected(kind, encoded_record(kind, {**BASE, "dev": name, "flow": 1})) == {DropReason.BAD_STREAM_ID: 1}
    assert len(decode_live(kind, [encoded_record(kind, {**BASE, "dev": "x" * 128, "flow": 1})])) == 1


def test_of_a_key_that_comes_twice_the_last_one_counts() -> None:
    """As in most readers of JSON; it is neither an error nor a second record."""
    twice = b'{"dev":"p1","time":"2024-05-01T12:00:00Z","flow":1,"flow":2,"level":3}'
    for kind in ("json", "jsonl"):
        assert decode_live(kind, [twice]).values.tolist() == [[2.0, 3.0]]


def test_records_in_one_payload() -> None:
    """The number of records in one payload is bounded, since sources bound only its bytes."""
    many = b"[" + b"{}," * MAX_RECORDS + b"{}]"
    assert rejected("json_array", many) == {DropReason.TOO_LARGE: 1}


def test_fields_repeated_for_many_vectors_do_not_multiply() -> None:
    """An object of thousands of fields and vectors is rejected before its fields are copied for each vector."""
    beside = ",".join(f'"k{i}":0' for i in range(1500))
    bad = ('{"time":1,' + beside + ',"v":[' + ",".join(["[1,2]"] * 5000) + "]}").encode()
    assert rejected("json_vector", bad) == {DropReason.TOO_MANY_FIELDS: 1}


NAMES = ["time", "dev", "flow", "level", "fields", "tags", "v", "n", "t", "bn"]
wide_json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
        st.sampled_from(["2024-05-01T12:00:00Z", 1714564800, "p1", 1e39, 2**53 + 1, "x" * 300]),
    ),
    lambda inside: st.one_of(
        st.lists(inside, max_size=4),
        st.dictionaries(st.sampled_from(NAMES), inside),
    ),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("kind", [*OBJECTS, "senml"])
def test_any_objects_become_sound_rows_or_rejects(kind: str) -> None:
    """No nesting raises an error, and all values are finite or missing."""

    @settings(max_examples=100)
    @given(st.lists(wide_json_values, min_size=1, max_size=3), st.sampled_from(["iso", "s"]))
    def holds(values: list[object], unit: str) -> None:
        if kind == "cbor":
            import cbor2

            payloads = [cbor2.dumps(value) for value in values]
        else:
            payloads = [json.dumps(value).encode() for value in values]
        batch = decode_live(kind, payloads, time_unit=unit)
        check_sound(batch, 2)
        assert batch.received >= (0 if kind in ("jsonl", "senml", "json_vector") else len(values))

    holds()
