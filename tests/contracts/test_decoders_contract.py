"""Every decoder fulfils every clause of the Decoder contract."""

from __future__ import annotations

import binascii
import io
import json
import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.config.train_schema import InputConfig
from stream_gru.connectors.decoders.field_map import Fields
from stream_gru.connectors.registry import DECODERS, load_decoder
from stream_gru.core.errors import DataError
from stream_gru.core.protocols import Decoder
from stream_gru.core.timestamps import to_ns
from stream_gru.core.types import DropReason, RawMessage, SampleBatch

START = datetime(2024, 5, 1, 12, tzinfo=UTC)
CHANNELS = ("flow", "level")
STRUCT = "<40s8s8s8s8s20sdd"
OPTIONS = {"stream": "pump", "label": "mode", "reset": "restart", "episode": "run", "device_seq": "n"}
FieldRecord = dict[str, Any]
RECORDS: list[FieldRecord] = [
    {
        "time": (START + timedelta(seconds=i, microseconds=250 * i)).isoformat(),
        "pump": f"p{i % 3}",
        "mode": ["on", "off", None][i % 3],
        "restart": i == 5,
        "run": f"r{i // 7}",
        "n": 2**60 + i if i % 4 else None,
        "flow": None if i == 3 else i + 0.1,
        "level": i,
    }
    for i in range(20)
]


def csv_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """Lines under a header."""
    names = list(records[0])
    return [RawMessage("\n".join(map(csv_line, records)).encode(), "p", ",".join(names).encode())]


def csv_line(record: FieldRecord) -> str:
    """Cells, empty where there is no value."""
    return ",".join("" if value is None else str(value) for value in record.values())


def json_lines_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """Lines of objects."""
    return [RawMessage("\n".join(json.dumps(record) for record in records).encode(), "p")]


def json_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """An object each."""
    return [RawMessage(json.dumps(record).encode(), "p") for record in records]


def json_array_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """One array of objects."""
    return [RawMessage(json.dumps(list(records)).encode(), "p")]


def json_vector_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """Channels in ``v``, the rest beside it."""
    vectors = [
        {**{k: v for k, v in record.items() if k not in CHANNELS}, "v": [record[k] for k in CHANNELS if k in record]}
        for record in records
    ]
    return json_messages(vectors)


def plotter_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """Labelled values, blank where there is none."""
    lines = [",".join(f"{k}:{'' if v is None else v}" for k, v in record.items()) for record in records]
    return [RawMessage("\n".join(lines).encode(), "p")]


def line_protocol_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """The stream is a tag."""

    def value(v: object) -> str:
        return json.dumps(v) if isinstance(v, str | bool) else f"{v}i" if isinstance(v, int) else str(v)

    lines = []
    for record in records:
        fields = {k: v for k, v in record.items() if k not in ("time", "pump") and v is not None}
        time = f" {to_ns(record['time'])}" if record["time"] else ""
        lines.append(f"m,pump={record['pump']} " + ",".join(f"{k}={value(v)}" for k, v in fields.items()) + time)
    return [RawMessage("\n".join(lines).encode(), "p")]


def senml_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """A pack each, with the whole seconds in the base time."""
    packs = []
    for record in records:
        whole, rest = divmod(to_ns(record["time"]), 10**9) if record["time"] else (0, 0)
        kinds = {str: "vs", bool: "vb", int: "v", float: "v"}
        pack: list[FieldRecord] = [
            {"n": k, kinds[type(v)]: v, "t": rest / 10**9} for k, v in record.items() if k != "time" and v is not None
        ]
        packs.append([{"bt": whole}, *pack])
    return json_messages(packs)  # type: ignore[arg-type]


def cbor_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """An array of maps."""
    import cbor2

    return [RawMessage(cbor2.dumps(list(records)), "p")]


def binary_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """Frames of text and numbers."""
    from cobs import cobs

    frames = []
    for record in records:
        texts = [str(record.get(k) if record.get(k) is not None else "").encode() for k in list(RECORDS[0])[:6]]
        numbers = [math.nan if record.get(k) is None else record[k] for k in CHANNELS]
        inside = struct.pack(STRUCT, *texts, *numbers)
        frames.append(RawMessage(cobs.encode(inside + binascii.crc_hqx(inside, 0xFFFF).to_bytes(2, "little")), "p"))
    return frames


def arrow_messages(records: Sequence[FieldRecord]) -> list[RawMessage]:
    """A table with instants."""
    import pyarrow as pa

    rows = [{**r, "time": r["time"] and datetime.fromisoformat(r["time"])} for r in records]
    columns = {"time": pa.timestamp("us", "Europe/Berlin"), "n": pa.int64(), "flow": pa.float64(), "level": pa.int32()}
    schema = pa.schema([(k, columns.get(k) or (pa.bool_() if k == "restart" else pa.string())) for k in records[0]])
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
    return [RawMessage(buffer.getvalue(), "p")]


MESSAGES: dict[str, Callable[[Sequence[FieldRecord]], list[RawMessage]]] = {
    "csv": csv_messages,
    "jsonl": json_lines_messages,
    "parquet": arrow_messages,
    "json": json_messages,
    "json_array": json_array_messages,
    "json_vector": json_vector_messages,
    "plotter": plotter_messages,
    "line_protocol": line_protocol_messages,
    "senml": senml_messages,
    "cbor": cbor_messages,
    "binary": binary_messages,
}
LIVE = sorted(set(DECODERS.built_in) - {"parquet"})
LINES = ("csv", "jsonl", "plotter", "line_protocol")


def contract_decoder(kind: str, **options: str) -> Decoder:
    """A decoder of the columns of RECORDS."""
    names = tuple(RECORDS[0]) if kind == "binary" else ()
    return load_decoder(
        kind,
        Fields(InputConfig(**options), CHANNELS, CHANNELS, names=names, struct=STRUCT),  # type: ignore[arg-type]
    )


def decode_records(kind: str, messages: Sequence[RawMessage], **options: str) -> SampleBatch:
    """Decode with the columns of RECORDS."""
    return contract_decoder(kind, **options).decode(messages)


def record_rows(batch: SampleBatch) -> list[tuple[object, ...]]:
    """All rows as plain values."""
    assert batch.device_seq is not None
    assert batch.label is not None
    assert batch.reset is not None
    assert batch.episode is not None
    labels = (*batch.labels, None)
    return [
        (batch.stream_names[s], t, v.tobytes(), n, labels[label], flag, key)
        for s, t, v, n, label, flag, key in zip(
            batch.stream_index.tolist(), batch.time_ns.tolist(), batch.values, batch.device_seq.tolist(),
            batch.label.tolist(), batch.reset.tolist(), batch.episode.tolist(), strict=True,
        )
    ]  # fmt: skip


def check_is_a_decoder(kind: str) -> None:
    """It has the method."""
    assert isinstance(contract_decoder(kind), Decoder)


def check_reads_every_column(kind: str) -> None:
    """Rows are in order of arrival with all their columns; a missing value is NaN, -1 or None."""
    rows = record_rows(decode_records(kind, MESSAGES[kind](RECORDS), **OPTIONS))
    for record, (stream, time, values, seq, label, flag, _) in zip(RECORDS, rows, strict=True):
        assert (stream, label, flag) == (record["pump"], record["mode"], record["restart"])
        assert time == to_ns(record["time"])
        assert seq == (-1 if record["n"] is None else record["n"])
        flow = np.nan if record["flow"] is None else record["flow"]
        assert values == np.array([flow, record["level"]], np.float32).tobytes()
    assert [row[6] == rows[0][6] for row in rows] == [i < 7 for i in range(20)]


def check_agrees_with_csv(kind: str) -> None:
    """All formats read the same records the same way, episode keys included."""
    assert record_rows(decode_records(kind, MESSAGES[kind](RECORDS), **OPTIONS)) == record_rows(
        decode_records("csv", csv_messages(RECORDS), **OPTIONS)
    )


def check_messages_do_not_matter(kind: str) -> None:
    """One message per record gives the same as one message for all, bit for bit."""
    single = [message for record in RECORDS for message in MESSAGES[kind]([record])]
    assert record_rows(decode_records(kind, single, **OPTIONS)) == record_rows(
        decode_records(kind, MESSAGES[kind](RECORDS), **OPTIONS)
    )


def check_nothing_is_an_empty_batch(kind: str) -> None:
    """No messages give a batch of no rows and all channels."""
    batch = decode_records(kind, [])
    assert (batch.values.shape, batch.received) == ((0, 2), 0)


def check_columns_have_their_types(kind: str) -> None:
    """All columns are equally long and of the type that `SampleBatch` promises."""
    for rows in (RECORDS, RECORDS[:1], [{**RECORDS[0], "time": None}]):
        batch = decode_records(kind, MESSAGES[kind](rows), **OPTIONS)
        dtypes = {
            "stream_index": np.int32, "time_ns": np.int64, "values": np.float32, "device_seq": np.int64,
            "label": np.int32, "reset": np.bool_, "episode": np.int64,
        }  # fmt: skip
        for name, dtype in dtypes.items():
            column = getattr(batch, name)
            assert column.dtype == dtype, name
            assert len(column) == len(batch), name


def check_missing_times_are_counted(kind: str) -> None:
    """A row without a time is one reject and affects no other row."""
    rows = [{**record, "time": None} if i % 5 == 0 else record for i, record in enumerate(RECORDS)]
    batch = decode_records(kind, MESSAGES[kind](rows), **OPTIONS)
    assert batch.rejected_counts == {DropReason.MISSING_FIELD: 4}
    assert record_rows(batch) == [
        row for i, row in enumerate(record_rows(decode_records(kind, MESSAGES[kind](RECORDS), **OPTIONS))) if i % 5
    ]


def check_rejects_hold_their_messages(kind: str) -> None:
    """Each rejected record refers to its own message, and to its place in it; one entry counts several."""
    rows = [{**record, "time": None} if i % 5 == 2 else record for i, record in enumerate(RECORDS)]
    single = [MESSAGES[kind]([record])[0] for record in rows]
    rejected = decode_records(kind, single, **OPTIONS).rejected
    assert [entry.message for entry in rejected] == single[2::5]
    assert [(entry.reason, entry.records) for entry in rejected] == [(DropReason.MISSING_FIELD, 1)] * 4
    together = MESSAGES[kind](rows)
    rejected = decode_records(kind, together, **OPTIONS).rejected
    assert len(rejected) == len({id(entry.message) for entry in rejected}) <= len(together)
    assert sum(entry.records for entry in rejected) == 4
    first = rejected[0]
    assert first.message is not None
    payload = first.message.payload
    if kind == "senml":  # a message holds one sample in several records
        assert first.message is together[2]
        assert json.loads(first.line) == json.loads(payload)[first.row - 1]
        assert payload.startswith(first.line, first.offset)
        return
    if len(together) > 1:  # a message holds one record
        assert (first.message, first.row, first.offset, first.line) == (together[2], 1, 0, b"")
        return
    assert first.row == 3
    if kind in LINES:
        lines = payload.split(b"\n")
        assert (first.offset, first.line) == (len(lines[0]) + len(lines[1]) + 2, lines[2])
    elif first.offset is None:
        assert kind in {"cbor", "parquet", "json_vector"}
    else:
        assert payload.startswith(first.line, first.offset)
        assert json.loads(first.line) == json.loads(payload)[2]


def check_absent_optional_columns_are_missing_in_each_row(kind: str) -> None:
    """A configured optional column that is absent is missing in each row and rejects none."""
    rows = [{k: v for k, v in r.items() if k in ("time", "pump", "flow", "level")} for r in RECORDS]
    batch = decode_records(kind, MESSAGES[kind](rows), **OPTIONS)
    assert {row[3:] for row in record_rows(batch)} == {(-1, None, False, -1)}
    assert not batch.rejected


def check_an_absent_channel_is_an_error_in_tables(kind: str) -> None:
    """A table without a channel's column is a DataError; records without it are read, since records may differ."""
    rows = [{k: v for k, v in r.items() if k != "level"} | {"flow": 1.5} for r in RECORDS]
    if kind in ("csv", "parquet"):
        with pytest.raises(DataError, match="p: expected a column 'level'"):
            decode_records(kind, MESSAGES[kind](rows))
        return
    batch = decode_records(kind, MESSAGES[kind](rows))
    assert np.isnan(batch.values[:, 1]).all()
    assert batch.rejected_counts == ({DropReason.MISSING_FIELD: 20} if kind == "json_vector" else {})


def check_damaged_bytes_raise_only_data_error(kind: str) -> None:
    """Changed and truncated bytes are rejects or a DataError, never another error."""
    rng = np.random.default_rng(4)
    messages = MESSAGES[kind](RECORDS)
    for turn in range(150):
        message = messages[turn % len(messages)]
        damaged = bytearray(message.payload)
        for place in rng.integers(0, len(damaged), int(rng.integers(1, 4))):
            damaged[place] = rng.integers(256)
        payload = bytes(damaged[: rng.integers(1, len(damaged) + 1)] if rng.random() < 0.3 else damaged)
        try:
            batch = decode_records(kind, [RawMessage(payload, "p", message.header)], **OPTIONS)
        except DataError:
            continue
        assert batch.received == len(batch) + sum(batch.rejected_counts.values())


def check_a_fault_is_one_reject(kind: str) -> None:
    """A message with a fault is not decoded, is counted under its reason and affects no other one."""
    good = MESSAGES[kind](RECORDS)
    faulty = [replace(message, fault=DropReason.TOO_LARGE) for message in good]
    batch = decode_records(kind, [*faulty, *good], **OPTIONS)
    assert batch.rejected_counts == {DropReason.TOO_LARGE: len(good)}
    assert record_rows(batch) == record_rows(decode_records(kind, good, **OPTIONS))


def check_arrivals_stay_with_their_rows(kind: str) -> None:
    """Each row has the arrival of its message; rows of recordings have none."""
    good = [message for record in RECORDS for message in MESSAGES[kind]([record])]
    assert decode_records(kind, good, **OPTIONS).arrival_ns is None
    live = [replace(message, arrival_ns=to_ns(START) + i) for i, message in enumerate(good)]
    arrival_ns = decode_records(kind, live, **OPTIONS).arrival_ns
    assert arrival_ns is not None
    assert arrival_ns.tolist() == [to_ns(START) + i for i in range(20)]


def check_a_clock_far_ahead_is_rejected(kind: str) -> None:
    """A live row more than a day after its arrival is rejected: it would block its stream."""
    late = [replace(message, arrival_ns=to_ns(START) - 86_400 * 10**9) for message in MESSAGES[kind](RECORDS)]
    batch = decode_records(kind, late, **OPTIONS)
    assert batch.rejected_counts == {DropReason.TIMESTAMP: 19}
    assert len(batch) == 1


def check_streams_are_named_by_keys(kind: str) -> None:
    """Rows that name no stream have their message's key; a device's invalid key is a reject, a file's is converted."""
    messages = [
        replace(message, key=key)
        for key, record in zip(["a", "b", "c+", "a"], RECORDS, strict=False)
        for message in MESSAGES[kind]([record])
    ]
    batch = decode_records(kind, messages)
    assert [batch.stream_names[i] for i in batch.stream_index] == ["a", "b", "c_", "a"]
    batch = decode_records(kind, [replace(message, arrival_ns=to_ns(START)) for message in messages])
    assert [batch.stream_names[i] for i in batch.stream_index] == ["a", "b", "a"]
    assert batch.rejected_counts == {DropReason.BAD_STREAM_ID: 1}


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


def _format_row(kind: str) -> object:
    missing = kind == "parquet" and find_spec("pyarrow") is None
    return pytest.param(kind, marks=pytest.mark.skipif(missing, reason="pyarrow is not installed"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", [_format_row(kind) for kind in sorted(MESSAGES)])
def test_decoder_contract(kind: str, check: Callable[[str], None]) -> None:
    """Every decoder fulfils every clause."""
    check(kind)


def test_every_format_is_under_contract() -> None:
    """Only bare numbers cannot hold the records."""
    assert set(DECODERS.built_in) - set(MESSAGES) == {"number"}


def live_messages(kind: str) -> list[RawMessage]:
    """The records as devices send them, one a message."""
    if kind == "number":
        payloads = [str(record["flow"]).encode() for record in RECORDS if record["flow"] is not None]
        good = [RawMessage(payload, "p", channel="flow") for payload in payloads]
    elif kind == "csv":
        good = [RawMessage(csv_line(record).encode(), "p") for record in RECORDS]
    else:
        good = [message for record in RECORDS for message in MESSAGES[kind]([record])]
    return [replace(message, arrival_ns=to_ns(START) + i) for i, message in enumerate(good)]


# Text that some format reads as no record: blanks, separators, comments.
NOTHING = re.compile(r"(\s|,|\ufeff|#[^\n]*)*")


@pytest.mark.parametrize("kind", LIVE)
def test_any_bytes_are_rejects_and_affect_no_other_message(kind: str) -> None:
    """No bytes raise an error, each message that is not blank is counted, and each is read as it is alone."""
    good = live_messages(kind)
    options = {} if kind == "number" else OPTIONS
    names = tuple(RECORDS[0]) if kind in ("binary", "csv") else ()
    fields = Fields(InputConfig(**options), CHANNELS, CHANNELS, names=names, struct=STRUCT)  # type: ignore[arg-type]

    def damage(message: RawMessage, place: int, byte: int, cut: int) -> RawMessage:
        payload = bytearray(message.payload)
        payload[place % len(payload)] = byte
        return replace(message, payload=bytes(payload[: cut or None]))

    byte = st.integers(0, 255)
    sound = st.sampled_from(good)
    broken = st.builds(damage, sound, st.integers(0, 500), byte, st.integers(0, 120))
    garbage = st.builds(lambda message, payload: replace(message, payload=payload), sound, st.binary(max_size=60))

    @settings(max_examples=150)
    @given(st.lists(st.one_of(sound, broken, garbage, garbage), max_size=6))
    def holds(messages: list[RawMessage]) -> None:
        batch = load_decoder(kind, fields).decode(messages)
        alone = [load_decoder(kind, fields).decode([message]) for message in messages]
        for message, one in zip(messages, alone, strict=True):
            assert one.received or NOTHING.fullmatch(message.payload.decode(errors="replace"))
        assert batch.received == sum(one.received for one in alone)
        full = [one for one in alone if len(one)]
        assert batch.values.tobytes() == b"".join(one.values.tobytes() for one in full)
        assert batch.time_ns.tolist() == [time for one in full for time in one.time_ns.tolist()]
        assert [batch.stream_names[i] for i in batch.stream_index] == [
            one.stream_names[i] for one in full for i in one.stream_index
        ]

    holds()


@pytest.mark.parametrize("kind", sorted(set(LIVE) - {"csv"}))
def test_an_unknown_channel_is_a_reject(kind: str) -> None:
    """A topic's channel that the model does not have rejects the message (tables name their own channels)."""
    messages = [replace(message, channel="door") for message in live_messages(kind)]
    assert decode_records(kind, messages, **OPTIONS).rejected_counts == {DropReason.UNKNOWN_STREAM: len(messages)}


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_instants_out_of_range_harm_no_other_row(unit: str) -> None:
    """An invalid or missing instant is one reject and affects no other row, for any unit of the column."""
    import pyarrow as pa

    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    times = pa.array([1_714_564_800 * factor, None, 2**62, -(2**63) + 1], pa.int64()).cast(pa.timestamp(unit))
    table = pa.record_batch({"time": times, "flow": [1.0] * 4, "level": [1] * 4})
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_batch(table)
    batch = decode_records("parquet", [RawMessage(buffer.getvalue(), "p")])
    assert batch.time_ns.tolist() == [1_714_564_800 * 10**9]
    assert batch.rejected_counts == {DropReason.MISSING_FIELD: 1, DropReason.TIMESTAMP: 2}


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
@pytest.mark.parametrize("name", ["pump", "mode", "restart", "run", "n", "flow"])
@pytest.mark.parametrize("kind", ["date", "instant", "time", "short duration", "long duration", "list", "bytes"])
def test_arrow_columns_of_a_type_no_field_has_are_rejects(name: str, kind: str) -> None:
    """Columns of any type and any values reject single rows and raise nothing."""
    import pyarrow as pa

    odd = {
        "date": pa.array([2**31 - 1, None], pa.date32()),
        "instant": pa.array([2**62, None], pa.timestamp("ms", "Europe/Berlin")),
        "time": pa.array([1, None], pa.time64("ns")),
        "short duration": pa.array([1, None], pa.duration("ns")),
        "long duration": pa.array([2**62, None], pa.duration("s")),
        "list": pa.array([[1], None]),
        "bytes": pa.array([b"p1", None]),
    }[kind]
    columns = {"time": pa.array(["2024-05-01T12:00:00Z"] * 2), "pump": pa.array(["p"] * 2), "flow": pa.array([1.0] * 2)}
    table = pa.record_batch({**columns, "level": pa.array([1.0] * 2), name: odd})
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_batch(table)
    batch = decode_records("parquet", [RawMessage(buffer.getvalue(), "p")], **OPTIONS)
    missing = {DropReason.MISSING_FIELD: 1} if name == "pump" else {}
    assert batch.rejected_counts == {DropReason.TYPE: 1, **missing}
    assert len(batch) == 1 - len(missing)


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_arrow_dates_are_instants() -> None:
    """A date is its first instant; one out of range is one reject; a duration is no time."""
    import pyarrow as pa

    for times, expected, rejected in (
        (pa.array([19_844, 2**31 - 1, None], pa.date32()), [19_844 * 86_400 * 10**9], DropReason.TIMESTAMP),
        (pa.array([86_400_000, 86_400_000 * 10**9, None], pa.date64()), [86_400 * 10**9], DropReason.TIMESTAMP),
        (pa.array([1, 2**62, None], pa.duration("us")), [], DropReason.TYPE),
    ):
        table = pa.record_batch({"time": times, "flow": [1.0] * 3, "level": [1] * 3})
        buffer = io.BytesIO()
        with pa.ipc.new_stream(buffer, table.schema) as writer:
            writer.write_batch(table)
        batch = decode_records("parquet", [RawMessage(buffer.getvalue(), "p")])
        assert batch.time_ns.tolist() == expected
        assert batch.rejected_counts == {rejected: 2 - len(expected), DropReason.MISSING_FIELD: 1}
