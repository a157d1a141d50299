"""The streams whose status a sink has published."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_gru.connectors.sinks.availability import StreamAvailability


def test_the_newest_word_of_a_stream_counts() -> None:
    """Online, offline and online again; a stream that was never added has no status."""
    presence = StreamAvailability()
    assert presence.get("a") is None
    for online in (True, False, True):
        assert presence.put("a", online) == ""
        assert presence.get("a") is online
    presence.put("b", False)
    assert sorted(presence.items()) == [("a", True), ("b", False)]
    assert sorted(presence.names()) == ["a", "b"]


def test_who_went_first_is_forgotten_first() -> None:
    """Beyond the bound of offline streams; an online stream is never forgotten for them."""
    presence = StreamAvailability(max_offline=2)
    presence.put("on", True)
    for stream in "abc":
        presence.put(stream, True)
        presence.put(stream, False)
    assert [presence.get(stream) for stream in ("on", "a", "b", "c")] == [True, None, False, False]


def test_beyond_the_bound_of_those_online_the_first_counts_as_offline() -> None:
    """The caller gets its name, to publish it; with new data it is online again."""
    presence = StreamAvailability(max_online=2)
    assert [presence.put(stream, True) for stream in "abc"] == ["", "", "a"]
    assert presence.get("a") is False
    assert presence.put("a", True) == "b"


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans())), st.integers(1, 3), st.integers(1, 3))
def test_it_never_grows_beyond_its_bounds(words: list[tuple[str, bool]], online: int, offline: int) -> None:
    """And a stream that was just updated is known."""
    presence = StreamAvailability(online, offline)
    for stream, here in words:
        presence.put(stream, here)
        assert presence.get(stream) is here
        assert sum(is_on for _, is_on in presence.items()) <= online
        assert len(presence) <= online + offline
