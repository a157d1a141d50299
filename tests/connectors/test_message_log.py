from __future__ import annotations

import json
import logging
import os
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.connectors.sources.message_log import MessageLogSource, MessageLogWriter
from stream_gru.core.errors import ConfigError, DataError, EndOfInput, SinkUnavailable
from stream_gru.core.protocols import Source
from stream_gru.core.types import DropReason, Position, RawMessage

MESSAGES = [
    RawMessage(b'{"flow": 1.5}', "pump-1", arrival_ns=1_772_323_200_000_000_000, source="shop"),
    RawMessage(b"1.5", "pump-1", arrival_ns=1_772_323_200_000_000_001, channel="flow", source="shop"),
    RawMessage(b"\xff\x00", "port", b"a,b\r\n", 5, source="port"),
    RawMessage(b"", "port", fault=DropReason.OVERLONG_LINE, source="port"),
    RawMessage("{\u2028\U0001f600\x00\n}".encode()),
]


def read_log(source: Source, position: Position | None = None, limit: int = 1000) -> list[RawMessage]:
    """All messages."""
    messages: list[RawMessage] = []
    source.open(position)
    try:
        while True:
            part = source.poll(limit, 0.0)
            assert 1 <= len(part) <= limit
            messages += part
    except EndOfInput:
        with pytest.raises(EndOfInput):
            source.poll(1, 0.0)
        source.close()
        source.close()
        return messages


def write_log(path: Path, messages: Sequence[RawMessage]) -> Path:
    """A recording of these messages."""
    with MessageLogWriter(path, wall_ns=lambda: 1_772_323_200_000_000_000) as writer:
        writer.write(messages)
    assert writer.messages == len(messages)
    return path


def bare(messages: Sequence[RawMessage]) -> list[RawMessage]:
    """Without positions."""
    return [replace(message, position=None) for message in messages]


any_message = st.builds(
    RawMessage,
    payload=st.binary(max_size=40) | st.text(max_size=20).map(str.encode),
    key=st.text(max_size=8),
    header=st.binary(max_size=8),
    arrival_ns=st.integers(-(2**63), 2**63 - 1),
    channel=st.text(max_size=8),
    fault=st.none() | st.sampled_from(DropReason),
    source=st.text(max_size=8),
)


@given(st.lists(any_message, max_size=8), st.booleans(), st.integers(1, 9))
def test_any_message_comes_back_as_it_was(messages: list[RawMessage], compressed: bool, limit: int) -> None:
    """With any bytes and names, compressed or not; and reading can continue after any message."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_log(Path(folder) / ("a.jsonl.gz" if compressed else "a.jsonl"), messages)
        back = read_log(MessageLogSource([path], block=4), limit=limit)
        assert bare(back) == messages
        for index, message in enumerate(back):
            assert message.position is not None
            assert message.position.name == str(path)
            assert read_log(MessageLogSource([path]), message.position) == back[index + 1 :]


def test_a_recording_can_be_read_by_people(tmp_path: Path) -> None:
    """JSON lines; text is text; empty fields are left out; the position is the end of the line."""
    path = write_log(tmp_path / "a.jsonl", MESSAGES)
    assert isinstance(MessageLogSource([path]), Source)
    assert MessageLogSource([path]).health().connected
    first, *lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(first) == {"stream_gru_recording": 1, "created": "2026-03-01T00:00:00Z"}
    assert json.loads(lines[0]) == {
        "source": "shop",
        "key": "pump-1",
        "arrival_ns": 1_772_323_200_000_000_000,
        "payload": '{"flow": 1.5}',
    }
    assert json.loads(lines[2])["payload"] == {"base64": "/wA="}
    assert json.loads(lines[3]) == {"source": "port", "key": "port", "fault": "overlong_line"}
    (message, *_) = read_log(MessageLogSource([path]))
    before = first + lines[0]
    assert message.position == Position(str(path), len(before), f"{zlib.crc32(before):08x} -")


def test_several_recordings_are_read_in_order(tmp_path: Path) -> None:
    """Patterns too; a position in one continues with the next; one of another input is refused."""
    paths = [write_log(tmp_path / f"{name}.jsonl", MESSAGES[:2]) for name in "ab"]
    back = read_log(MessageLogSource([tmp_path / "*.jsonl"]))
    assert [message.position.name for message in back if message.position] == [str(paths[i]) for i in (0, 0, 1, 1)]
    assert read_log(MessageLogSource(paths), back[1].position) == back[2:]
    with pytest.raises(DataError, match="and is missing"):
        read_log(MessageLogSource(paths), Position("c.jsonl", 1))
    with pytest.raises(DataError, match=r"c\.jsonl: no such file"):
        MessageLogSource([tmp_path / "c.jsonl"]).open(None)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_half_written_end_is_left_out_with_a_warning(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything a killed process had flushed can be read; the unflushed rest is logged."""
    path = tmp_path / name
    writer = MessageLogWriter(path)
    writer.open()
    writer.write(MESSAGES)
    writer.flush()
    flushed = path.read_bytes()
    writer.close()
    whole = path.read_bytes()
    path.write_bytes(flushed)
    assert bare(read_log(MessageLogSource([path]))) == MESSAGES
    assert bool(caplog.records) == name.endswith(".gz")
    path.write_bytes(whole[:-9] if name.endswith("gz") else whole[:-5])
    caplog.clear()
    assert bare(read_log(MessageLogSource([path]))) == (MESSAGES if name.endswith("gz") else MESSAGES[:-1])
    assert f"{name}:{7 if name.endswith('gz') else 6}: the last line is incomplete" in caplog.text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{]", "expected a recorded message: JSON is malformed"),
        (b'{"payload": 5}', r"expected a recorded message: Expected `str \| object`, got `int` - at `\$.payload`"),
        (b'{"payload": {"base64": "/w=A"}}', "expected a recorded message: "),
        (b'{"payload": {"base64": "\xc3\xa4"}}', "expected a recorded message: "),
        (b'{"payload": "\xff"}', "expected a recorded message: "),
        (b'{"arrival_ns": 1e300}', "expected a recorded message: "),
        (b'{"fault": "tired"}', "fault: expected one of late, .*, got 'tired'"),
        (b"[" * 100_000, "expected a recorded message: "),
        (b"", "expected a recorded message: "),
        (b"x" * 2_000_000, "expected at most 1572864 bytes in a line, got more"),
    ],
)
def test_a_damaged_line_is_reported_with_its_number(line: bytes, expected: str, tmp_path: Path) -> None:
    """The error has the place and the fault, also when reading continues after a position."""
    path = write_log(tmp_path / "a.jsonl", MESSAGES[:1])
    good = path.read_bytes()
    path.write_bytes(good + line + b"\n" + good.splitlines(keepends=True)[1])
    for position in (None, Position(str(path), len(good))):
        with pytest.raises(DataError, match=rf"a\.jsonl:3: {expected}"):
            read_log(MessageLogSource([path]), position)


def test_a_file_that_is_no_recording_is_an_error(tmp_path: Path) -> None:
    """Other JSON lines, a later version, a file that is not compressed."""
    path = tmp_path / "a.jsonl"
    for text, expected in (
        ('{"time": 5}\n', r"a\.jsonl:1: expected a recording of stream-gru record, got b'{\"time\": 5}"),
        ('{"stream_gru_recording": 2}\n', r"a\.jsonl:1: expected a recording of version 1, got version 2"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=expected):
            read_log(MessageLogSource([path]))
    (tmp_path / "b.jsonl.gz").write_text("plain")
    with pytest.raises(DataError, match=r"b\.jsonl\.gz: cannot be read"):
        read_log(MessageLogSource([tmp_path / "b.jsonl.gz"]))
    path.write_bytes(b'{"stream_gru_recording": 1, "created": "\xff"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: expected a recording of"):
        read_log(MessageLogSource([path]))


def test_a_message_too_large_for_a_line_is_recorded_as_too_large(tmp_path: Path) -> None:
    """It is counted, not lost silently; one that is too large only in base64 is kept."""
    path = tmp_path / "a.jsonl"
    large = RawMessage(b"x" * 2_000_000, "k", arrival_ns=9, source="s")
    dense = RawMessage(b"\x00" * 1_000_000, "k", source="s")
    with MessageLogWriter(path) as writer:
        writer.write([large, dense])
    assert writer.too_large == 1
    fault = RawMessage(b"", "k", arrival_ns=9, fault=DropReason.TOO_LARGE, source="s")
    assert bare(read_log(MessageLogSource([path]))) == [fault, dense]


def test_a_recording_is_never_written_over(tmp_path: Path) -> None:
    """An existing file is refused, a missing folder is an error."""
    path = write_log(tmp_path / "a.jsonl", [])
    with pytest.raises(ConfigError, match=r"a\.jsonl: already exists"):
        MessageLogWriter(path).open()
    with pytest.raises(SinkUnavailable, match="cannot be written: No such file or directory"):
        MessageLogWriter(tmp_path / "none" / "a.jsonl").open()
    with pytest.raises(SinkUnavailable, match="not open"):
        MessageLogWriter(tmp_path / "b.jsonl").write([])
    writer = MessageLogWriter(tmp_path / "c.jsonl")
    writer.flush()
    writer.close()


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    """When it occurs, and once more at the end."""
    writer = MessageLogWriter(tmp_path / "a.jsonl.gz")
    writer.open()
    assert writer._raw is not None
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._raw.fileno())
    os.close(full)
    writer.write([RawMessage(b"x")])
    with pytest.raises(SinkUnavailable, match="No space left"):
        writer.flush()
    with pytest.raises(SinkUnavailable, match="No space left"):
        writer.write([RawMessage(os.urandom(100_000))])
    with pytest.raises(SinkUnavailable, match="No space left"):
        writer.close()
    writer.close()


def test_a_recording_that_changed_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    """Any byte before the position counts; a longer file continues, a shorter or missing one is an error."""
    path = write_log(tmp_path / "a.jsonl", MESSAGES[:2])
    whole = path.read_bytes()
    position = read_log(MessageLogSource([path]))[-1].position
    assert position is not None
    longer = write_log(tmp_path / "b.jsonl", MESSAGES).read_bytes()
    path.write_bytes(longer)
    assert bare(read_log(MessageLogSource([path]), position)) == MESSAGES[2:]
    for text, why in (
        (whole.replace(b"shop", b"ship", 1), "the text before that position differs"),
        (whole[:-5], "no line ends there"),
        (whole[:-1] + b" \n", "no line ends there"),
    ):
        path.write_bytes(text)
        with pytest.raises(DataError, match=rf"a\.jsonl: was read up to byte {position.offset} .*: {why}; restore it"):
            MessageLogSource([path]).open(position)
    path.unlink()
    with pytest.raises(DataError, match="and is missing"):
        MessageLogSource([path]).open(position)


def test_a_recording_that_was_read_to_its_end_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No message is repeated, and the log says how to restart."""
    caplog.set_level(logging.INFO)
    path = write_log(tmp_path / "a.jsonl", MESSAGES)
    position = read_log(MessageLogSource([path]))[-1].position
    assert not caplog.records
    assert read_log(MessageLogSource([path], name="tape"), position) == []
    assert "tape: was read to its end before" in caplog.text
    assert "`stream-gru state reset CONFIG --source tape`" in caplog.text
