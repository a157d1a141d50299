"""Which streams nothing comes from any more."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from stream_gru.runtime.stream_checks import IdleStreams


def test_a_stream_falls_idle_once_and_comes_back_once() -> None:
    """Each change is told once, by the first look after it."""
    watch = IdleStreams(10)
    watch.seen(["a", "b"], 0)
    assert watch.check(9.9) == ([], [])
    watch.seen(["b"], 9.9)
    assert watch.check(10) == (["a"], [])
    assert (watch.count, watch.is_idle("a"), watch.is_idle("b")) == (1, True, False)
    assert watch.check(11) == ([], [])
    watch.seen(["a"], 12)
    assert (watch.count, watch.is_idle("a")) == (0, False)
    assert watch.check(13) == ([], ["a"])
    assert watch.check(14) == ([], [])
    assert watch.check(50) == (["b", "a"], [])


def test_a_short_return_between_two_looks_is_not_told() -> None:
    """Who came back and fell silent again without anybody looking is still silent."""
    watch = IdleStreams(10)
    watch.seen(["a"], 0)
    assert watch.check(20) == (["a"], [])
    watch.seen(["a"], 21)
    assert watch.check(40) == ([], [])
    assert watch.is_idle("a")


def test_a_stream_never_heard_or_forgotten_is_not_waited_for() -> None:
    """Forgetting works for streams that speak, are silent, have just come back, or are unknown."""
    watch = IdleStreams(1)
    assert watch.check(100) == ([], [])
    watch.seen(["a", "b", "c"], 100)
    watch.forget("a")
    watch.forget("nobody")
    assert watch.check(102) == (["b", "c"], [])
    watch.forget("b")
    watch.seen(["c"], 103)
    watch.forget("c")
    assert watch.count == 0
    assert watch.check(200) == ([], [])


def test_beyond_the_bound_who_was_heard_last_is_watched() -> None:
    """Silent streams are forgotten first, then those last heard longest ago; the newest always fall silent in time."""
    watch = IdleStreams(10, max_streams=2)
    watch.seen(["a", "b"], 0)
    watch.seen(["b"], 5)
    assert watch.check(10) == (["a"], [])
    watch.seen(["c"], 11)
    assert (watch.is_idle("a"), watch.count) == (False, 0)
    watch.seen(["d"], 12)
    assert watch.check(100) == (["c", "d"], [])


def test_a_stream_forgotten_while_idle_is_back_when_it_returns() -> None:
    """Whoever was told that it is silent is told that it is not, though the watch no longer knows it."""
    watch = IdleStreams(10, max_streams=1)
    watch.seen(["a"], 0)
    assert watch.check(10) == (["a"], [])
    watch.seen(["b"], 11)
    watch.seen(["a"], 12)
    assert "a" in watch.check(12)[1]


def test_a_smaller_bound_holds_from_the_next_sample_on() -> None:
    """A bound can be changed, as patience can."""
    watch = IdleStreams(10)
    watch.seen("abcd", 0)
    watch.max_streams = 2
    watch.seen("a", 1)
    assert watch.check(20) == (["d", "a"], [])


@given(
    st.lists(st.tuples(st.integers(0, 4), st.lists(st.sampled_from("abcdefgh"), max_size=4), st.booleans())),
    st.integers(1, 4),
)
def test_the_bound_holds_and_the_newest_are_watched(steps: list[tuple[int, list[str], bool]], most: int) -> None:
    """Whatever comes: nothing grows beyond the bound, and the streams heard last are known, silent where they are."""
    watch, now = IdleStreams(5, max_streams=most), 0
    last: dict[str, int] = {}
    for pause, streams, look in steps:
        now += pause
        watch.seen(streams, now)
        for stream in streams:
            last.pop(stream, None)
            last[stream] = now
        if look:
            watch.check(now)
            for stream in list(last)[-most:]:
                assert watch.is_idle(stream) == (now - last[stream] >= 5)
        assert len(watch._seen_s) + len(watch._idle) <= most
        assert watch._resumed.keys() <= watch._seen_s.keys()


def test_patience_can_be_changed() -> None:
    """The next look goes by the new one."""
    watch = IdleStreams(10)
    watch.seen(["a"], 0)
    watch.timeout_s = 3
    assert watch.check(3) == (["a"], [])


@given(st.lists(st.tuples(st.integers(0, 4), st.sets(st.sampled_from("abcd")), st.booleans()), max_size=40))
def test_the_changes_add_up_to_who_is_idle(steps: list[tuple[int, set[str], bool]]) -> None:
    """At every look, those told silent and not told back are those last heard at least ``after_s`` ago."""
    watch, now, told = IdleStreams(5), 0, set[str]()
    last: dict[str, int] = {}
    for pause, streams, look in steps:
        now += pause
        watch.seen(sorted(streams), now)
        last |= dict.fromkeys(streams, now)
        if look:
            fallen, back = watch.check(now)
            assert not told & set(fallen)
            assert set(back) <= told
            told = (told | set(fallen)) - set(back)
            assert told == {stream for stream, heard in last.items() if now - heard >= 5}
            assert watch.count == len(told)


def test_a_look_at_a_hundred_thousand_streams_costs_nothing() -> None:
    """A look where nobody fell silent takes less than a millisecond, however many streams there are."""
    watch = IdleStreams(10)
    watch.seen((str(i) for i in range(100_000)), 0)
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        assert watch.check(5) == ([], [])
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1e-3
