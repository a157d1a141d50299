from __future__ import annotations

import pytest
from cobs import cobs
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.connectors.sources.framing import CobsFramer, Framer, LineFramer
from stream_gru.core.types import DropReason

OVERLONG = DropReason.OVERLONG_LINE


def in_portions(framer: Framer, data: bytes, cuts: list[int]) -> list[bytes | DropReason]:
    """The frames of ``data`` when it arrives cut at these places."""
    ends = sorted(min(cut, len(data)) for cut in cuts)
    portions = [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]
    return [frame for portion in portions for frame in framer.feed(portion)]


rubbish = st.lists(
    st.sampled_from([b"\n", b"\r", b"\r\n", b"\0", b"a", b"bc", b"\x02x", b"\xff\xfe", b"12345678", b" "]), max_size=30
).map(b"".join)


@pytest.mark.parametrize("kind", [LineFramer, CobsFramer])
@given(rubbish, st.lists(st.integers(0, 80), max_size=6), st.booleans())
def test_frames_are_the_same_in_any_portions(
    kind: type[LineFramer] | type[CobsFramer], data: bytes, cuts: list[int], discard: bool
) -> None:
    """Wherever the bytes are cut, byte by byte or at once, the same frames and faults come in the same order."""
    whole = kind(8, discard).feed(data)
    assert in_portions(kind(8, discard), data, cuts) == whole
    assert in_portions(kind(8, discard), data, list(range(len(data)))) == whole


@given(rubbish)
def test_lines_are_what_splitting_gives(data: bytes) -> None:
    """Compared with a model: split at LF, strip one CR, skip blank lines, report overlong ones."""
    expected: list[bytes | DropReason] = []
    *lines, rest = data.split(b"\n")
    for line in lines:
        bare = line.removesuffix(b"\r")
        if len(bare) > 8 or bare.strip():
            expected.append(OVERLONG if len(bare) > 8 else bare)
    if len(rest) > 9:
        expected.append(OVERLONG)
    assert LineFramer(8, discard_first=False).feed(data) == expected


@given(st.lists(st.binary(min_size=1, max_size=600), max_size=6), st.lists(st.integers(0, 4000), max_size=5), rubbish)
def test_cobs_frames_come_back_after_rubbish(frames: list[bytes], cuts: list[int], noise: bytes) -> None:
    """Each frame is decoded as it was encoded, and noise before the first zero does not affect it."""
    data = noise.replace(b"\0", b"?")[:600] + b"\0" + b"".join(cobs.encode(frame) + b"\0" for frame in frames)
    found = in_portions(CobsFramer(1000), data, cuts)
    assert [cobs.decode(frame) for frame in found if isinstance(frame, bytes)] == frames
    assert len(found) == len(frames)


def test_the_first_line_is_left_out_because_its_beginning_is_unknown() -> None:
    """Nothing counts up to the first line end, unless it is too long to be the rest of a line."""
    assert LineFramer(16).feed(b"lf a line\r\nwhole\r\n") == [b"whole"]
    assert LineFramer(8).feed(b"\nwhole\n") == [b"whole"]
    assert LineFramer(8).feed(b"x" * 10) == [OVERLONG]
    assert LineFramer(8, discard_first=False).feed(b"first\n") == [b"first"]


def test_an_overlong_line_is_one_fault_and_the_next_one_is_whole() -> None:
    """Any length without a line end is one fault and takes bounded memory."""
    framer = LineFramer(8, discard_first=False)
    assert framer.feed(b"x" * 10) == [OVERLONG]
    for _ in range(1000):
        assert framer.feed(b"x" * 1000) == []
    assert sum(len(value) for value in vars(framer._cutter).values() if isinstance(value, bytes)) < 20
    assert framer.feed(b"\n12345678\r\n123456789\n\n  \r\nend\n") == [b"12345678", OVERLONG, b"end"]


def test_cobs_frames_are_separated_by_zeros_alone() -> None:
    """Empty frames are ignored, an overlong one is one fault, the next one is whole."""
    framer = CobsFramer(16, discard_first=False)
    assert framer.feed(b"\x09short\0\0\0\x02\n\0") == [b"\x09short", b"\x02\n"]
    assert framer.feed(b"\xff" * 17 + b"\0" + b"\xff" * 16 + b"\0\x02x") == [OVERLONG, b"\xff" * 16]
    assert framer.feed(b"\0") == [b"\x02x"]
