"""Per-stream state: which keys are dirty, and bytes that are restored or rejected."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pytest

from stream_gru.core.errors import StateError
from stream_gru.core.keyed_state import Int64, KeyedState, decode, encode


class StoredNote(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A record."""

    number: Int64
    words: Annotated[list[str], msgspec.Meta(max_length=3)] = []


def test_a_record_is_dirty_until_it_is_committed() -> None:
    """After it is set or touched; not after it is restored or evicted."""
    notes: KeyedState[StoredNote] = KeyedState(StoredNote, "a test")
    note = notes.put("b", StoredNote(1))
    notes.put("a", StoredNote(2))
    assert notes.dirty_keys() == ("b", "a")
    notes.mark_clean()
    assert notes.dirty_keys() == ()
    note.number = 3
    notes.touch("b")
    assert notes.dirty_keys() == ("b",)
    data = notes.snapshot("b")
    assert data is not None
    notes.restore("b", data)
    assert notes.dirty_keys() == ()
    notes.touch("a")
    notes.evict("a")
    notes.evict("unknown")
    assert notes.dirty_keys() == ()
    assert (len(notes), notes.get("a"), notes.snapshot("a"), notes.get("b")) == (1, None, None, StoredNote(3))


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 2**63 - 1])
def test_64_bit_integers_are_stored_exactly(number: int) -> None:
    """Up to both ends of the range."""
    assert decode(encode(StoredNote(number, ["ü"])), StoredNote, "p") == StoredNote(number, ["ü"])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x92\x01",
        encode((2**63, [])),
        encode((1, [], 2)),
        encode((1, ["a"] * 4)),
        encode((1.5, [])),
        encode({"number": 1}),
        encode((1, [])) + b"\0",
        b"\x92\x01\x91\xa1\xff",  # no UTF-8
        b"\x92\x01\xdd\xff\xff\xff\xff",  # a list of four thousand million
        b"\x91" * 100_000,
    ],
)
def test_invalid_bytes_are_an_error_that_names_the_owner(data: bytes) -> None:
    """With what to do; a few bytes that announce a huge list cost nothing."""
    with pytest.raises(StateError, match=r"stored state of p is corrupt: .*; move the state directory away"):
        decode(data, StoredNote, "p")
