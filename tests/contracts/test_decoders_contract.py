"""Every decoder honours every clause of the Decoder contract."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from stream_gru.config.schema import InputConfig
from stream_gru.decoders import DECODERS, load_decoder
from stream_gru.decoders.fields import Fields
from stream_gru.errors import DataError
from stream_gru.protocols import Decoder
from stream_gru.times import to_ns
from stream_gru.types import DropReason, RawMessage, SampleBatch

START = datetime(2024, 5, 1, 12, tzinfo=UTC)
OPTIONS = {"stream": "pump", "label": "mode", "reset": "restart", "sequence": "run", "seq": "n"}
Record = dict[str, Any]
RECORDS: list[Record] = [
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


def csv_message(records: Sequence[Record]) -> RawMessage:
    """Lines under a header."""
    names = list(records[0])
    lines = [",".join("" if record[name] is None else str(record[name]) for name in names) for record in records]
    return RawMessage("\n".join(lines).encode(), "p", ",".join(names).encode())


def json_message(records: Sequence[Record]) -> RawMessage:
    """Lines of objects."""
    return RawMessage("\n".join(json.dumps(record) for record in records).encode(), "p")


def arrow_message(records: Sequence[Record]) -> RawMessage:
    """A table with instants."""
    import pyarrow as pa

    rows = [{**r, "time": r["time"] and datetime.fromisoformat(r["time"])} for r in records]
    columns = {"time": pa.timestamp("us", "Europe/Berlin"), "n": pa.int64(), "flow": pa.float64(), "level": pa.int32()}
    schema = pa.schema([(k, columns.get(k) or (pa.bool_() if k == "restart" else pa.string())) for k in records[0]])
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(rows, schema))
    return RawMessage(buffer.getvalue(), "p")


MESSAGES: dict[str, Callable[[Sequence[Record]], RawMessage]] = {
    "csv": csv_message,
    "jsonl": json_message,
    "parquet": arrow_message,
}


def decode(kind: str, messages: Sequence[RawMessage], **options: str) -> SampleBatch:
    """Decode with the columns of RECORDS."""
    fields = Fields(InputConfig(**options), ("flow", "level"))  # type: ignore[arg-type]
    return load_decoder(kind, fields).decode(messages)


def said(batch: SampleBatch) -> list[tuple[object, ...]]:
    """All rows as plain values."""
    assert batch.seq is not None
    assert batch.label is not None
    assert batch.reset is not None
    assert batch.sequence is not None
    labels = (*batch.labels, None)
    return [
        (batch.streams[s], t, v.tobytes(), n, labels[label], flag, key)
        for s, t, v, n, label, flag, key in zip(
            batch.stream.tolist(), batch.time_ns.tolist(), batch.values, batch.seq.tolist(), batch.label.tolist(),
            batch.reset.tolist(), batch.sequence.tolist(), strict=True,
        )
    ]  # fmt: skip


def check_is_a_decoder(kind: str) -> None:
    """It has the method."""
    assert isinstance(load_decoder(kind, Fields(InputConfig(), ("flow",))), Decoder)


def check_reads_every_column(kind: str) -> None:
    """Rows stand in order of arrival with all that was said of them; missing is NaN, -1 or None."""
    rows = said(decode(kind, [MESSAGES[kind](RECORDS)], **OPTIONS))
    for record, (stream, time, values, seq, label, flag, _) in zip(RECORDS, rows, strict=True):
        assert (stream, label, flag) == (record["pump"], record["mode"], record["restart"])
        assert time == to_ns(record["time"])
        assert seq == (-1 if record["n"] is None else record["n"])
        flow = np.nan if record["flow"] is None else record["flow"]
        assert values == np.array([flow, record["level"]], np.float32).tobytes()
    assert [row[6] == rows[0][6] for row in rows] == [i < 7 for i in range(20)]


def check_agrees_with_csv(kind: str) -> None:
    """All formats mean the same by the same records, sequence keys included."""
    assert said(decode(kind, [MESSAGES[kind](RECORDS)], **OPTIONS)) == said(
        decode("csv", [csv_message(RECORDS)], **OPTIONS)
    )


def check_messages_do_not_matter(kind: str) -> None:
    """A message for each record gives what one message gives, bit for bit."""
    single = [MESSAGES[kind]([record]) for record in RECORDS]
    assert said(decode(kind, single, **OPTIONS)) == said(decode(kind, [MESSAGES[kind](RECORDS)], **OPTIONS))


def check_nothing_is_an_empty_batch(kind: str) -> None:
    """No messages, no rows, but as many channels as ever."""
    batch = decode(kind, [])
    assert (batch.values.shape, batch.received) == ((0, 2), 0)


def check_columns_have_their_types(kind: str) -> None:
    """All columns are equally long and of the type that `SampleBatch` promises."""
    for rows in (RECORDS, RECORDS[:1], [{**RECORDS[0], "time": None}]):
        batch = decode(kind, [MESSAGES[kind](rows)], **OPTIONS)
        dtypes = {
            "stream": np.int32, "time_ns": np.int64, "values": np.float32, "seq": np.int64, "label": np.int32,
            "reset": np.bool_, "sequence": np.int64,
        }  # fmt: skip
        for name, dtype in dtypes.items():
            column = getattr(batch, name)
            assert column.dtype == dtype, name
            assert len(column) == len(batch), name


def check_missing_times_are_counted(kind: str) -> None:
    """A row without a time is one reject, and harms no row beside it."""
    rows = [{**record, "time": None} if i % 5 == 0 else record for i, record in enumerate(RECORDS)]
    batch = decode(kind, [MESSAGES[kind](rows)], **OPTIONS)
    assert dict(batch.rejected) == {DropReason.MISSING_FIELD: 4}
    assert said(batch) == [
        row for i, row in enumerate(said(decode(kind, [MESSAGES[kind](RECORDS)], **OPTIONS))) if i % 5
    ]


def check_absent_optional_columns_are_missing_in_each_row(kind: str) -> None:
    """A column that was asked for and is not there is missing everywhere, and no reason to drop a row."""
    rows = [{k: v for k, v in r.items() if k in ("time", "pump", "flow", "level")} for r in RECORDS]
    batch = decode(kind, [MESSAGES[kind](rows)], **OPTIONS)
    assert {row[3:] for row in said(batch)} == {(-1, None, False, -1)}
    assert not batch.rejected


def check_an_absent_channel_is_told(kind: str) -> None:
    """A table without a channel's column can never fit; an object without it may be one of many kinds."""
    rows = [{k: v for k, v in r.items() if k != "level"} for r in RECORDS]
    if kind == "jsonl":
        assert np.isnan(decode(kind, [MESSAGES[kind](rows)]).values[:, 1]).all()
        return
    with pytest.raises(DataError, match="p: expected a column 'level'"):
        decode(kind, [MESSAGES[kind](rows)])


def check_damaged_bytes_raise_only_data_error(kind: str) -> None:
    """Changed and cut bytes are rejects or a DataError, never another error."""
    rng = np.random.default_rng(4)
    message = MESSAGES[kind](RECORDS)
    for _ in range(150):
        damaged = bytearray(message.payload)
        for place in rng.integers(0, len(damaged), int(rng.integers(1, 4))):
            damaged[place] = rng.integers(256)
        payload = bytes(damaged[: rng.integers(1, len(damaged) + 1)] if rng.random() < 0.3 else damaged)
        try:
            batch = decode(kind, [RawMessage(payload, "p", message.header)], **OPTIONS)
        except DataError:
            continue
        assert batch.received == len(batch) + sum(batch.rejected.values())


CHECKS = [value for name, value in sorted(globals().items()) if name.startswith("check_")]


def _row(kind: str) -> object:
    missing = kind == "parquet" and find_spec("pyarrow") is None
    return pytest.param(kind, marks=pytest.mark.skipif(missing, reason="pyarrow is not installed"))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", [_row(kind) for kind in sorted(DECODERS)])
def test_decoder_contract(kind: str, check: Callable[[str], None]) -> None:
    """Every decoder honours every clause."""
    check(kind)


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_instants_out_of_range_harm_no_other_row(unit: str) -> None:
    """A nonsensical or missing instant beside a good one is one reject, whatever the unit of the column."""
    import pyarrow as pa

    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    times = pa.array([1_714_564_800 * factor, None, 2**62, -(2**63) + 1], pa.int64()).cast(pa.timestamp(unit))
    table = pa.record_batch({"time": times, "flow": [1.0] * 4, "level": [1] * 4})
    buffer = io.BytesIO()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_batch(table)
    batch = decode("parquet", [RawMessage(buffer.getvalue(), "p")])
    assert batch.time_ns.tolist() == [1_714_564_800 * 10**9]
    assert dict(batch.rejected) == {DropReason.MISSING_FIELD: 1, DropReason.TIMESTAMP: 2}


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
@pytest.mark.parametrize("name", ["pump", "mode", "restart", "run", "n", "flow"])
@pytest.mark.parametrize("kind", ["date", "instant", "time", "short duration", "long duration", "list", "bytes"])
def test_arrow_columns_of_a_type_no_field_has_are_rejects(name: str, kind: str) -> None:
    """Whatever the type of a column and whatever its values, its rows are dropped one by one, and nothing is raised."""
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
    batch = decode("parquet", [RawMessage(buffer.getvalue(), "p")], **OPTIONS)
    missing = {DropReason.MISSING_FIELD: 1} if name == "pump" else {}
    assert dict(batch.rejected) == {DropReason.TYPE: 1, **missing}
    assert len(batch) == 1 - len(missing)


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_arrow_dates_are_instants() -> None:
    """A date is its first moment; one that is out of range is one reject; a duration is no time."""
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
        batch = decode("parquet", [RawMessage(buffer.getvalue(), "p")])
        assert batch.time_ns.tolist() == expected
        assert dict(batch.rejected) == {rejected: 2 - len(expected), DropReason.MISSING_FIELD: 1}
