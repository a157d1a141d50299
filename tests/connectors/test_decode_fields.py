"""Which field means what: `Fields` of bundles and sources, and the batches that `build_batch` makes."""

from __future__ import annotations

import ast
import faulthandler
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import stream_gru
from stream_gru.config.run_schema import SourceChannelConfig, SourceInputConfig
from stream_gru.config.train_schema import ChannelConfig, InputConfig
from stream_gru.connectors.decoders import text as lines
from stream_gru.connectors.decoders.field_map import Column, Fields, build_batch
from stream_gru.connectors.decoders.rejects import Rejects
from stream_gru.connectors.registry import DECODERS, load_decoder
from stream_gru.core.errors import ConfigError
from stream_gru.core.types import DropReason, RawMessage, SampleBatch
from tests.support.batches import NOON_NS

CHANNELS = [ChannelConfig(name="temp", column="T"), ChannelConfig(name="hum")]


def for_source(*channels: SourceChannelConfig, **keys: object) -> Fields:
    """Fields of a source of two channels."""
    base = InputConfig(time="ts", time_unit="s", stream="dev", delimiter=";")
    return Fields.for_source(base, CHANNELS, SourceInputConfig(**keys), channels)  # type: ignore[arg-type]


def test_a_source_without_own_keys_has_the_fields_of_the_bundle() -> None:
    """Nothing is overridden."""
    base = InputConfig(time="ts", time_unit="s", stream="dev", delimiter=";")
    assert for_source() == Fields.of(base, CHANNELS)
    assert for_source().columns == ("T", "hum")
    assert for_source().channels == ("temp", "hum")


def test_each_key_of_a_source_overrides_that_of_the_input() -> None:
    """Empty text overrides, too: no time, no stream."""
    names = InputConfig(time="", stream="", delimiter="\t", label="l", reset="r", episode="s", device_seq="n")
    given = {key: getattr(names, key) for key in names.__struct_fields__ if key not in ("format", "time_unit")}
    assert for_source(**given, time_unit="ms").input == replace(names, time_unit="ms")
    fields = for_source(fields=["a", "T"], struct="<If", checksum="crc32", clock="boot")
    assert (fields.names, fields.struct, fields.checksum, fields.clock) == (("a", "T"), "<If", "crc32", "boot")


def test_channels_of_a_source_are_found_by_name() -> None:
    """A channel that is not listed is that of the bundle."""
    fields = for_source(SourceChannelConfig(name="hum", column="h", scale=0.5, unit="%RH"))
    assert fields.columns == ("T", "h")
    assert (fields.scale, fields.offset, fields.units) == ((1.0, 0.5), (0.0, 0.0), ("", "%RH"))
    assert [fields.index_of(name) for name in ("temp", "T", "hum", "h", "x", "")] == [0, 0, 1, 1, -1, -1]


@pytest.mark.parametrize(
    ("channels", "keys", "words"),
    [
        ([SourceChannelConfig(name="x")], {}, "source.channel: name: expected one of temp, hum, got 'x'"),
        (
            [SourceChannelConfig(name="hum"), SourceChannelConfig(name="hum")],
            {},
            "source.channel: name: expected each channel once, got 'hum' twice",
        ),
        (
            [SourceChannelConfig(name="hum", scale=0.0)],
            {},
            "source.channel: scale of hum: expected a number other than 0, got 0.0",
        ),
        (
            [SourceChannelConfig(name="hum", offset=float("inf"))],
            {},
            "source.channel: offset of hum: expected a number, got inf",
        ),
        ([], {"fields": ["a", "a"]}, "source.input: fields: expected each name once, got 'a' twice"),
        ([], {"struct": "é"}, "source.input: struct: expected a format of Python's struct, got 'é'"),
        (
            [],
            {"clock": "boot", "time": ""},
            'source.input: clock = "boot": expected a time in s, ms, us or ns, got time = ""',
        ),
    ],
)
def test_impossible_settings_are_errors(
    channels: list[SourceChannelConfig], keys: dict[str, object], words: str
) -> None:
    """The error has the expected and the actual value."""
    with pytest.raises(ConfigError) as caught:
        for_source(*channels, **keys)
    assert str(caught.value) == words


@pytest.mark.parametrize("kind", ["csv", "json_vector", "plotter", "binary"])
def test_names_without_a_channel_are_an_error_before_the_first_message(kind: str) -> None:
    """A decoder that could never read a value is not built."""
    with pytest.raises(ConfigError, match=r"fields: expected the field of a channel \(T or hum\), got a"):
        load_decoder(kind, for_source(fields=["a"], struct="<f"))


def columns(count: int) -> dict[str, Sequence[object]]:
    """Cells of ``count`` rows at noon."""
    return {"ts": [NOON_NS / 1e9] * count, "T": [0.1] * count, "hum": [-0.0] * count, "dev": ["d"] * count}


def batch_of_messages(fields: Fields, column: Callable[[str], Column | None], *messages: RawMessage) -> SampleBatch:
    """A batch of a row for each message, with what is rejected."""
    rejects = Rejects()
    return rejects.add_to(build_batch(fields, len(messages), column, messages, rejects))


def test_a_scale_is_computed_in_float64_and_its_absence_leaves_every_bit() -> None:
    """An offset that cancels the number loses no digits to float32; unscaled values keep every bit, -0.0 included."""
    recorded = RawMessage(b"", "p")
    plain = batch_of_messages(for_source(), columns(1).get, recorded)
    scale = SourceChannelConfig(name="temp", scale=10.0, offset=-1.0 + 1e-9)
    scaled = batch_of_messages(for_source(scale), columns(1).get, recorded)
    assert plain.values.tobytes() == np.array([[0.1, -0.0]], np.float32).tobytes()
    assert scaled.values.tobytes() == np.array([[0.1 * 10.0 + (-1.0 + 1e-9), -0.0]], np.float32).tobytes()


def test_each_row_has_the_key_and_the_arrival_of_its_message() -> None:
    """Rows of a recording and of live messages may be in one batch."""
    messages = [RawMessage(b"", key, arrival_ns=time) for key, time in (("a", NOON_NS), ("b+", 0), ("b+", NOON_NS))]
    batch = batch_of_messages(for_source(stream=""), columns(3).get, *messages)
    assert [batch.stream_names[i] for i in batch.stream_index] == ["a", "b_"]
    assert batch.arrival_ns is not None
    assert batch.arrival_ns.tolist() == [NOON_NS, 0]
    (rejected,) = batch.rejected
    assert (rejected.reason, rejected.records) == (DropReason.BAD_STREAM_ID, 1)
    assert rejected.message is messages[2]


def test_without_a_time_the_arrival_is_the_time_and_a_recording_has_none() -> None:
    """``time = ""`` in a file gives no time: the row is rejected."""
    live, recorded = RawMessage(b"", "p", arrival_ns=NOON_NS + 5), RawMessage(b"", "p")
    batch = batch_of_messages(for_source(time="", stream=""), columns(2).get, live, recorded)
    assert batch.time_ns.tolist() == [NOON_NS + 5]
    assert batch.rejected_counts == {DropReason.MISSING_FIELD: 1}


@pytest.mark.parametrize(("clock", "kept"), [("epoch", 1), ("boot", 2)])
def test_a_day_ahead_is_the_limit_of_a_clock_that_tells_the_time(clock: str, kept: int) -> None:
    """The clock of a device that counts from its start is not compared with ours."""
    cells = columns(2) | {"ts": [NOON_NS // 10**9 + 86_400, NOON_NS // 10**9 + 86_401]}
    batch = batch_of_messages(for_source(clock=clock), cells.get, *[RawMessage(b"", "p", arrival_ns=NOON_NS)] * 2)
    assert len(batch) == kept


@pytest.mark.parametrize("name", ["stream", "label", "episode", "device_seq", "reset"])
@pytest.mark.parametrize("kind", ["json", "cbor"])
def test_deep_values_in_place_of_names_exhaust_no_stack(kind: str, name: str) -> None:
    """Lists as deep as the parser accepts are one record each, without a RecursionError."""
    import cbor2

    decoder = load_decoder(kind, Fields(InputConfig(time="", **{name: "x"}), ("T",)))  # type: ignore[arg-type]
    for depth in (1, 100, 390, *range(850, 1000, 3)):
        nested = b"[" * depth + b"]" * depth
        cbor = cbor2.dumps({"T": 1, "x": 0})[:-1] + b"\x81" * (depth - 1) + b"\x80"
        payload = b'{"T":1,"x":' + nested + b"}" if kind == "json" else cbor
        assert decoder.decode([RawMessage(payload, "p", arrival_ns=NOON_NS)]).received == 1


BLANKS = (b"", b" ", b"\t\r\n", b"\n\n  \n", b"\xef\xbb\xbf", "\u2003\n".encode())


@pytest.mark.parametrize("payload", BLANKS)
@pytest.mark.parametrize("kind", sorted(set(DECODERS.built_in) - {"parquet", "binary", "cbor"}))
def test_a_blank_message_is_one_reject(kind: str, payload: bytes) -> None:
    """In every text format, for any channel of the topic; binary formats have no white space."""
    decoder = load_decoder(kind, Fields(InputConfig(time=""), ("temp", "hum")))
    for channel in ("", "temp", "unknown"):
        batch = decoder.decode([RawMessage(payload, "p", arrival_ns=NOON_NS, channel=channel)])
        assert (len(batch), batch.rejected_counts) == (0, {DropReason.PARSE: 1})


@pytest.mark.parametrize("payload", [b"", b"\n\r\n"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "json_vector", "plotter", "line_protocol", "senml"])
def test_blank_lines_of_a_recording_are_no_records(kind: str, payload: bytes) -> None:
    """There a message is a portion of a file."""
    decoder = load_decoder(kind, Fields(InputConfig(time=""), ("temp", "hum")))
    assert decoder.decode([RawMessage(payload, "p", b"temp,hum")]).received == 0


def test_a_header_without_rows_is_no_reject() -> None:
    """Standard input passes it on so that its columns are checked."""
    decoder = load_decoder("csv", Fields(InputConfig(time=""), ("temp", "hum")))
    assert decoder.decode([RawMessage(b"", "stdin", b"temp,hum", NOON_NS)]).received == 0


# The first part of a payload, the part that is repeated, and the last part.
HOSTILE = [
    (b"m,", b"a=b,", b""),
    (b"m", b"\\", b""),
    (b"m a=", b"\\,", b""),
    (b'm a="', b'\\"', b""),
    (b"m a=1", b",a=1", b","),
    (b"m a=1", b" ", b"x"),
    (b"m ", b" ", b""),
    (b"", b"a:", b""),
    (b"", b"a: ", b""),
    (b":", b" ", b""),
    (b"", b"1 ", b""),
    (b"", b'"', b""),
    (b"", b",", b""),
    (b"", b".", b""),
    (b"", b"1", b""),
    (b"", b"1", b"x"),
    (b'[{"n":"', b":", b'","v":1}]'),
    (b'[{"n":"a', b".", b'!","v":1}]'),
    (b"", b"[", b""),
    (b"", b'{"a":', b""),
    (b"", b"\x9f", b""),
    (b"", b"\x5f", b""),
]


@pytest.fixture
def time_limit(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """A decoder that takes minutes ends the test run with a traceback."""
    with capfd.disabled():
        shown = os.dup(2)
    faulthandler.dump_traceback_later(300, exit=True, file=shown)
    yield
    faulthandler.cancel_dump_traceback_later()
    os.close(shown)


@pytest.mark.usefixtures("time_limit")
@pytest.mark.parametrize("payload", HOSTILE, ids=lambda payload: repr(b"".join(payload)))
@pytest.mark.parametrize("kind", sorted(set(DECODERS.built_in) - {"parquet", "binary"}))
def test_no_payload_takes_long(kind: str, payload: tuple[bytes, bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to decode a hostile payload is linear in its length.

    A payload 32 times as long as the longest line is decoded at once; with quadratic time it would take minutes.
    """
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 64 * lines.MAX_LINE_BYTES)
    begin, part, end = payload
    whole = begin + part * (32 * 65_536 // len(part)) + end
    batch = load_decoder(kind, Fields(InputConfig(time=""), ("T", "hum"))).decode([RawMessage(whole, arrival_ns=1)])
    assert batch.received


SOURCES = sorted(Path(stream_gru.__file__).parent.rglob("*.py"))


def test_no_expression_uses_syntax_that_python_3_11_2_misreads() -> None:
    """Possessive quantifiers and atomic groups match other text in that version."""
    with_expressions = [path for path in SOURCES if re.search(r"^import re$", path.read_text(), re.MULTILINE)]
    assert len(with_expressions) > 5
    for path in with_expressions:
        texts = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        wrong = [text for text in texts if isinstance(text, str) and re.search(r"(?<!\\)[*+?}]\+|\(\?>", text)]
        assert not wrong, path
