from __future__ import annotations

import logging
import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stream_gru.connectors.sources.stdin import StdinSource
from stream_gru.core.errors import DataError
from stream_gru.core.types import Position, RawMessage
from tests.support.source_reading import TABLE, drain, keyed_lines, pipe, position_of, through_pipe


def fixed_portions(text: bytes) -> list[bytes]:
    """Portions as a pipe delivers them."""
    return [text[i : i + 10_000] for i in range(0, len(text), 10_000)]


@contextmanager
def redirected(path: Path, text: bytes) -> Iterator[StdinSource]:
    """Standard input as ``< FILE`` makes it."""
    path.write_bytes(text)
    with path.open("rb") as file:
        yield StdinSource(True, file.fileno(), name="lines")


def test_a_position_of_standard_input_is_behind_whole_lines() -> None:
    """It counts the bytes of the input, its header too, and belongs to the source."""
    messages = through_pipe([b"a,b\n1,2\n3", b",4\n", b"5,6"], header=True, name="lines")
    assert [position_of(message).offset for message in messages] == [8, 12, 15]
    assert {position_of(message).name for message in messages} == {"lines"}


def test_the_same_input_fed_again_is_left_out_as_far_as_it_was_processed(caplog: pytest.LogCaptureFixture) -> None:
    """The rest is read under the header of the whole input; the skip is logged at info."""
    caplog.set_level(logging.INFO)
    whole = through_pipe(fixed_portions(TABLE), header=True)
    position = position_of(whole[10])
    rest = through_pipe(fixed_portions(TABLE), True, position, "lines")
    assert keyed_lines(rest) == keyed_lines(whole[11:])
    assert {message.header for message in rest} == {b"time,flow"}
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert f"lines: is the same input again; its first {position.offset} bytes are skipped" in caplog.text


def test_an_input_that_changed_behind_its_beginning_is_refused() -> None:
    """It is neither the same nor a new one."""
    position = position_of(through_pipe(fixed_portions(TABLE), header=True)[10])
    for text, why in (
        (TABLE[:5000] + b"#" + TABLE[5001:], "its beginning differs"),
        (TABLE[: position.offset - 3] + b"#" + TABLE[position.offset - 2 :], "the text before that position differs"),
        (TABLE[:70_000], "it ends after 70,000 bytes"),
        (TABLE[:7], "it ends after 7 bytes"),
    ):
        with pytest.raises(DataError, match=rf"standard input: was read up to byte {position.offset:,} .*: {why}"):
            through_pipe(fixed_portions(text), True, position)


def test_the_first_byte_that_differs_decides(caplog: pytest.LogCaptureFixture) -> None:
    """A new input is held back only while it equals the start of the old one; one warning says how it is treated."""
    position = position_of(through_pipe([b"a,b\n1,2\n3,4\n"], header=True)[-1])
    with pipe() as (reader, writer):
        source = StdinSource(True, reader, name="lines")
        source.open(position)
        os.write(writer, b"a,b\n1,2\n3,")
        assert source.poll(10, 0.0) == []
        assert not caplog.records
        os.write(writer, b"5\n")
        (message,) = source.poll(10, 0.0)
    assert (message.payload, message.header) == (b"1,2\n3,5\n", b"a,b")
    assert position_of(message).offset == 12
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == ("lines: begins differently than the input before: it is a new input")


def test_an_input_that_was_read_to_its_end_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From a pipe and from a file: it ends, one line at info gives the reason and how to restart."""
    caplog.set_level(logging.INFO)
    position = position_of(through_pipe(fixed_portions(TABLE), header=True)[-1])
    expected = (
        "lines: was read to its end before; read from the beginning with `stream-gru state reset CONFIG --source lines`"
    )
    assert through_pipe(fixed_portions(TABLE), True, position, "lines") == []
    assert caplog.records[-1].getMessage() == expected
    caplog.clear()
    with redirected(tmp_path / "a.csv", TABLE) as source:
        assert drain(source, position) == []
    (record,) = caplog.records
    assert record.getMessage() == expected


def test_an_input_without_anything_ends_quietly() -> None:
    """A restart with an empty standard input does not count as a change of the input."""
    position = position_of(through_pipe(fixed_portions(TABLE), header=True)[-1])
    assert through_pipe([], True, position) == []


def test_a_file_as_standard_input_continues_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    """The source seeks instead of reading it; a changed one is refused when it is opened."""
    with redirected(tmp_path / "a.csv", TABLE) as source:
        whole = drain(source)
    position = position_of(whole[1])
    with redirected(tmp_path / "a.csv", TABLE + b"7,8\n") as source:
        source.open(position)
        (first, *_) = source.poll(1000, 0.0)
        assert first.payload.splitlines()[0] == TABLE[position.offset :].splitlines()[0]
        assert first.header == b"time,flow"
    for text, why in ((b"#" + TABLE, "its beginning differs"), (TABLE[:9], "it ends after 9 bytes")):
        with redirected(tmp_path / "a.csv", text) as source, pytest.raises(DataError, match=f"standard input: .*{why}"):
            source.open(position)


@pytest.mark.parametrize(
    ("text", "added", "more", "logged"),
    [
        (b"a,b\n1,2", b"\n3,4\n", [b"3,4"], False),
        (b"a,b\n1,2", b"5\n3,4\n", [b"3,4"], True),
        (b"a,b\n1,2", b"5", [], True),
        (b"a,b", b"\n1,2\n", [b"1,2"], False),
        (b"a", b",b\n1,2\n", [b"1,2"], False),
    ],
)
@pytest.mark.parametrize("cut", [1, 1000])
def test_a_line_that_had_no_end_is_not_handed_on_twice(
    text: bytes, added: bytes, more: list[bytes], logged: bool, cut: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The same input with more at its end: the rest of its last line is skipped, and logged where it adds data."""
    (*_, last) = through_pipe([text], header=True)
    chunks = [(text + added)[i : i + cut] for i in range(0, len(text + added), cut)]
    messages = through_pipe(chunks, True, position_of(last))
    assert [line for _, _, line in keyed_lines(messages)] == more
    assert all(message.header == b"a,b" for message in messages)
    assert ("what was added to it is skipped" in caplog.text) == logged


def test_a_position_that_cannot_be_read_is_refused() -> None:
    """Without a digest of the start the source does not guess."""
    with pipe() as (reader, _):
        for check in ("", "a b", "a b c", "a b eJw="):
            with pytest.raises(DataError, match="the stored prefix is not valid"):
                StdinSource(False, reader).open(Position("stdin", 9, check))


def test_skipping_takes_bounded_memory() -> None:
    """A repeated input is not buffered while it is skipped, even without line ends; the position is small."""
    text = TABLE + b"x" * 3_000_000 + b"\ny,z\n"
    whole = through_pipe(fixed_portions(text), header=False)
    position = position_of(whole[-1])
    assert len(position.fingerprint) < 6000
    chunks = fixed_portions(text)
    tracemalloc.start()
    try:
        assert through_pipe(chunks, False, position) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 600_000


def test_a_new_input_has_positions_of_its_own() -> None:
    """After a second restart the new input is recognised, not the one before it."""
    old, new = b"a\nb\nc\n", b"a\nd\ne\nf\n"
    position = position_of(through_pipe([old], header=False)[-1])
    first = through_pipe([b"a\nd\n", b"e\nf\n"], False, position)
    assert through_pipe([new], False, position_of(first[0])) == [
        RawMessage(b"e\nf\n", "stdin", b"", 7, first[-1].position, source="stdin", topic="stdin")
    ]


def test_a_new_input_without_rows_is_a_message_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """Its header was not checked before, and it was not read to its end before."""
    caplog.set_level(logging.INFO)
    position = position_of(through_pipe([b"a,b\n1,2\n"], header=True)[-1])
    (message,) = through_pipe([b"a,c\n"], True, position)
    assert (message.payload, message.header, position_of(message).offset) == (b"", b"a,c", 4)
    assert "was read to its end before" not in caplog.text
