"""Gzip data that is cut at any sync and completed by another process."""

from __future__ import annotations

import gzip
import io

from hypothesis import given
from hypothesis import strategies as st

from stream_gru.connectors.sinks.file_recovery import GzipMember, ending


@given(st.lists(st.binary(max_size=300)))
def test_a_member_that_was_cut_at_a_sync_is_whole_with_its_ending(parts: list[bytes]) -> None:
    """Data before the sync is there, data after it is not; more members may follow."""
    member = GzipMember()
    cut = b"".join(member.write(part) for part in parts) + member.sync()
    crc32, size = member.crc32, member.size
    member.write(b"lost")
    whole = cut + ending(crc32, size)
    after = GzipMember()
    assert gzip.decompress(whole + after.write(b"next") + after.finish()) == b"".join(parts) + b"next"


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans())))
def test_a_finished_member_has_everything(parts: list[tuple[bytes, bool]]) -> None:
    """Synced anywhere, also twice and before any write; an empty one is a valid gzip file too."""
    member, found = GzipMember(), b""
    for part, sync in parts:
        found += member.write(part)
        if sync:
            found += member.sync()
    assert gzip.decompress(found + member.finish()) == b"".join(part for part, _ in parts)


def test_nothing_but_the_data_is_inside() -> None:
    """No time, no name, no system: the bytes are those of Python's own writer without them."""
    member, expected = GzipMember(), io.BytesIO()
    with gzip.GzipFile("", "wb", 6, expected, mtime=0) as file:
        file.write(b"text")
    assert member.write(b"text") + member.finish() == expected.getvalue()
