from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.config.train_schema import ChannelConfig, InputConfig
from stream_gru.connectors.decoders.field_map import Fields, stream_id
from stream_gru.connectors.registry import load_decoder
from stream_gru.core.errors import ConfigError, DataError
from stream_gru.core.types import DropReason, Position, RawMessage, SampleBatch

NAMES = ("time", "pump", "mode", "restart", "run", "n", "flow", "level")
HEADER = ",".join(NAMES).encode()
ALL = {"stream": "pump", "label": "mode", "reset": "restart", "episode": "run", "device_seq": "n"}
UNITS = ("iso", "s", "ms", "us", "ns")

good_times = st.one_of(
    st.integers(0, 4 * 10**9).map(str),
    st.integers(10**18, 4 * 10**18).map(str),
    st.floats(0, 4e9).map(repr),
    st.sampled_from(["2024-05-01T12:00:00Z", "2024-05-01T12:00:01.5+02:00", "2024-05-01 12:00:02"]),
)
odd = st.sampled_from(
    [
        "",
        "nan",
        "1_0",
        "1e400",
        "-",
        "inf",
        "٣",
        "1\r2",
        '"',
        'a"b',
        "x" * 130,
        "9" * 19,
        "9" * 30,
        "1.0",
        " 2 ",
        "true",
    ]
)
number_texts = st.one_of(st.integers(-(10**20), 10**20).map(str), st.floats().map(repr))
fields_of_text = st.one_of(number_texts, odd, st.text(max_size=6))
csv_lines = st.builds(
    lambda time, rest, keep: ",".join([time, *rest][:keep]).encode(errors="replace"),
    st.one_of(good_times, odd),
    st.lists(fields_of_text, min_size=7, max_size=8),
    st.sampled_from([8, 8, 8, 8, 9, 5]),
)
json_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    fields_of_text,
    st.sampled_from(["a", "b", "7"]),
    st.just([1]),
    st.just({"a": 1}),
)
json_lines = st.builds(
    lambda time, rest: orjson.dumps({**rest, "time": time}),
    st.one_of(good_times, json_values),
    st.dictionaries(st.sampled_from(NAMES[1:]), json_values),
)
junk = st.binary(max_size=40).map(lambda line: line.replace(b"\n", b""))


def decode_file_payloads(kind: str, messages: Sequence[bytes], **options: str) -> SampleBatch:
    """Decode payloads of one file called ``p``."""
    fields = Fields(InputConfig(**options), ("flow", "level"))  # type: ignore[arg-type]
    return load_decoder(kind, fields).decode([RawMessage(payload, "p", HEADER) for payload in messages])


def content(batch: SampleBatch) -> tuple[list[tuple[object, ...]], Counter[DropReason]]:
    """The rows and reject counts of a batch as plain values, independent of the order of its tables."""

    def cell(column: np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None, row: int) -> object:
        return None if column is None else column[row].item()

    rows: list[tuple[object, ...]] = [
        (
            batch.stream_names[batch.stream_index[i]],
            int(batch.time_ns[i]),
            batch.values[i].tobytes(),
            cell(batch.device_seq, i),
            None if batch.label is None or batch.label[i] < 0 else batch.labels[batch.label[i]],
            cell(batch.reset, i),
            cell(batch.episode, i),
        )
        for i in range(len(batch))
    ]
    return rows, Counter(batch.rejected_counts)


@pytest.mark.parametrize(("kind", "good"), [("csv", csv_lines), ("jsonl", json_lines)])
def test_a_row_does_not_depend_on_other_rows(kind: str, good: st.SearchStrategy[bytes]) -> None:
    """Lines, split into messages at any line ends, give the same rows as each line alone."""

    @settings(max_examples=250)
    @given(
        st.lists(st.one_of(good, good, good, junk), max_size=8),
        st.lists(st.integers(0, 8), max_size=3),
        st.sampled_from(UNITS),
        st.sampled_from([ALL, {}]),
    )
    def holds(lines: list[bytes], cuts: list[int], unit: str, options: dict[str, str]) -> None:
        lines = [line.replace(b"\n", b" ") + b"\n" for line in lines]
        edges = [0, *sorted(min(cut, len(lines)) for cut in cuts), len(lines)]
        messages = [b"".join(lines[a:b]) for a, b in pairwise(edges)]
        whole = decode_file_payloads(kind, [b"".join(lines)], time_unit=unit, **options)
        assert content(decode_file_payloads(kind, messages, time_unit=unit, **options)) == content(whole)
        rows: list[tuple[object, ...]] = []
        rejected: Counter[DropReason] = Counter()
        for line in lines:
            alone, bad = content(decode_file_payloads(kind, [line], time_unit=unit, **options))
            rows, rejected = rows + alone, rejected + bad
        assert content(whole) == (rows, rejected)

    holds()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_any_bytes_become_rows_or_rejects(kind: str) -> None:
    """No bytes raise an error, and every line that is not blank is a row or one reject."""

    @settings(max_examples=250)
    @given(st.lists(st.one_of(junk, csv_lines, json_lines), max_size=6), st.sampled_from(UNITS))
    def holds(lines: list[bytes], unit: str) -> None:
        lines = [line.replace(b"\n", b" ") for line in lines]
        batch = decode_file_payloads(kind, [b"\n".join(lines)], time_unit=unit, **ALL)
        blank = b"\r" if kind == "csv" else None
        nothing = [line for line in lines if not line.strip(blank) or _is_space(kind, line)]
        assert batch.received == len(lines) - len(nothing)
        assert batch.received == len(batch) + sum(batch.rejected_counts.values())

    holds()


def _is_space(kind: str, line: bytes) -> bool:
    return kind == "jsonl" and b"\0" not in line and line.decode(errors="replace").isspace()


@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl", "parquet"]), st.binary(max_size=60))
def test_any_bytes_and_header_raise_nothing_but_data_error(payload: bytes, kind: str, header: bytes) -> None:
    """An unreadable header raises DataError; no other error is ever raised."""
    decoder = load_decoder(kind, Fields(InputConfig(), ("flow",)))
    try:
        batch = decoder.decode([RawMessage(payload, "p", header)])
    except DataError:
        return
    assert batch.values.shape == (len(batch), 1)


def test_the_column_of_a_channel_is_its_name_by_default() -> None:
    """`Fields.of` uses ``column`` where it is given."""
    channels = [ChannelConfig(name="flow"), ChannelConfig(name="level", column="LT-7")]
    assert Fields.of(InputConfig(), channels).columns == ("flow", "LT-7")


def test_the_stream_of_a_file_is_its_name() -> None:
    """Without a stream column the file's name is the stream; invalid characters become ``_``."""
    batch = load_decoder("csv", Fields(InputConfig(), ("flow",))).decode(
        [RawMessage(b"2024-05-01T12:00:00Z,1", "Pumpe #3 größe", b"time,flow")]
    )
    assert batch.stream_names == ("Pumpe _3 gr__e",)
    assert stream_id("") == "_"
    assert len(stream_id("x" * 500)) == 128


def test_messages_of_different_files_keep_their_headers() -> None:
    """Each message is read by its own header; streams and labels are merged."""
    fields = Fields(InputConfig(label="mode"), ("flow",))
    batch = load_decoder("csv", fields).decode(
        [
            RawMessage(b"2024-05-01T12:00:00Z,1,on\n", "a", b"time,flow,mode"),
            RawMessage(b"off,2,2024-05-01T12:00:01Z\n", "b", b"mode,flow,time"),
            RawMessage(b"2024-05-01T12:00:02Z,3\n", "a", b"time,flow"),
        ]
    )
    assert [row[0] for row in content(batch)[0]] == ["a", "b", "a"]
    assert [row[4] for row in content(batch)[0]] == ["on", "off", None]


def test_an_unknown_format_is_an_error() -> None:
    """The error lists the known formats."""
    with pytest.raises(ConfigError, match=r"format: expected one of csv, jsonl, .*, number, got 'xml'"):
        load_decoder("xml", Fields(InputConfig(), ("flow",)))


def test_a_line_at_the_limit_is_read_and_a_longer_one_is_rejected() -> None:
    """The limit is 64 KiB a line, at any place of the payload."""
    good = b'{"time":"2024-05-01T12:00:00Z","flow":1,"x":"' + b"x" * (64 * 1024 - 47) + b'"}'
    assert len(good) == 64 * 1024
    assert len(decode_file_payloads("jsonl", [good + b"\n" + good])) == 2
    batch = decode_file_payloads("jsonl", [good + b"\n" + good.replace(b"x", b"xx", 5) + b"\n" + good])
    assert (len(batch), batch.rejected_counts) == (2, {DropReason.TOO_LARGE: 1})


@pytest.mark.parametrize(
    ("kind", "module", "package", "extra"),
    [
        ("parquet", "parquet", "pyarrow", "parquet"),
        ("cbor", "binary_decoders", "cbor2", "binary"),
        ("binary", "binary_decoders", "cobs", "binary"),
    ],
)
def test_a_format_whose_package_is_missing_is_an_error(
    kind: str, module: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the package to install."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"stream_gru.connectors.decoders.{module}", raising=False)
    with pytest.raises(ConfigError, match=rf"{kind} cannot be loaded .*; pip install 'stream-gru\[{extra}\]'"):
        load_decoder(kind, Fields(InputConfig(), ("flow",)))


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (
            b"time,level\n",
            "expected a column 'flow' in the header, got time, level; see [input] and [[channel]] column",
        ),
        (b"", "expected a column 'time' in the header, got nothing; see [input] and [[channel]] column"),
        (b"time;flow\n", "expected a column 'time' in the header, got time;flow; check input.delimiter"),
        (b"time\tflow\n", "expected a column 'time' in the header, got time\\tflow; check input.delimiter"),
        (b"a\x1b[2J\x00\n", "expected a column 'time' in the header, got a\\x1b[2J\\x00; see [input]"),
        (b"x" * 999, f"expected a column 'time' in the header, got {'x' * 80}...; see [input]"),
        (b"\x1b" * 50, f"expected a column 'time' in the header, got {chr(92)}x1b" + "\\x1b" * 19 + "...; see [input]"),
        (b'a"\x1b,"' + b"x" * 200_000, 'expected a header of CSV names, got a"\\x1b,"xxx'),
        (b"time,flow\r1,2\r", "expected lines that end with LF or CR LF, got a header with CR alone: time,flow\\r1,2"),
        (b"time,flow,flow\n", "expected one column 'flow' in the header, got several"),
    ],
)
def test_an_unusable_header_is_an_error_that_is_safe_to_print(header: bytes, words: str) -> None:
    """The error has the whole path, what was expected and the first part of the header, without control characters."""
    decoder = load_decoder("csv", Fields(InputConfig(), ("flow",)))
    with pytest.raises(DataError) as caught:
        decoder.decode([RawMessage(b"", "p", header, position=Position("data/p.csv", 0))])
    assert str(caught.value).startswith(f"data/p.csv: {words}")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 220
