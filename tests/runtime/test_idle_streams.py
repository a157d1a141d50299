"""Detection of streams that stop sending, or whose samples are all dropped."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_gru.runtime.stream_checks import IdleStreams, StreamDrops
from tests.support.batches import batch
from tests.support.pipelines import toy_pipeline


def test_a_stream_becomes_idle_once_and_resumes_once() -> None:
    """Each change is returned once, by the first check after it."""
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


def test_a_short_return_between_two_checks_is_not_reported() -> None:
    """A stream that resumed and became idle again in between is still idle."""
    watch = IdleStreams(10)
    watch.seen(["a"], 0)
    assert watch.check(20) == (["a"], [])
    watch.seen(["a"], 21)
    assert watch.check(40) == ([], [])
    assert watch.is_idle("a")


def test_an_unknown_or_forgotten_stream_is_not_idle() -> None:
    """Forgetting works for streams that are active, idle, just resumed, or unknown."""
    watch = IdleStreams(1)
    assert watch.check(100) == ([], [])
    watch.seen(["a", "b", "c"], 100)
    watch.forget("a")
    watch.forget("unknown")
    assert watch.check(102) == (["b", "c"], [])
    watch.forget("b")
    watch.seen(["c"], 103)
    watch.forget("c")
    assert watch.count == 0
    assert watch.check(200) == ([], [])


def test_beyond_the_bound_the_most_recent_streams_are_tracked() -> None:
    """Idle streams are forgotten first, then the least recently seen; the most recent ones become idle in time."""
    watch = IdleStreams(10, max_streams=2)
    watch.seen(["a", "b"], 0)
    watch.seen(["b"], 5)
    assert watch.check(10) == (["a"], [])
    watch.seen(["c"], 11)
    assert (watch.is_idle("a"), watch.count) == (False, 0)
    watch.seen(["d"], 12)
    assert watch.check(100) == (["c", "d"], [])


def test_a_stream_forgotten_while_idle_resumes() -> None:
    """A stream reported as idle is reported as resumed, though it is no longer tracked."""
    watch = IdleStreams(10, max_streams=1)
    watch.seen(["a"], 0)
    assert watch.check(10) == (["a"], [])
    watch.seen(["b"], 11)
    watch.seen(["a"], 12)
    assert "a" in watch.check(12)[1]


def test_a_smaller_bound_holds_from_the_next_sample_on() -> None:
    """The bound can be changed."""
    watch = IdleStreams(10)
    watch.seen("abcd", 0)
    watch.max_streams = 2
    watch.seen("a", 1)
    assert watch.check(20) == (["d", "a"], [])


@given(
    st.lists(st.tuples(st.integers(0, 4), st.lists(st.sampled_from("abcdefgh"), max_size=4), st.booleans())),
    st.integers(1, 4),
)
def test_the_bound_holds_and_the_most_recent_are_tracked(steps: list[tuple[int, list[str], bool]], most: int) -> None:
    """Nothing grows beyond the bound, and of the most recently seen streams it is known whether they are idle."""
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


def test_the_timeout_can_be_changed() -> None:
    """The next check uses the new one."""
    watch = IdleStreams(10)
    watch.seen(["a"], 0)
    watch.timeout_s = 3
    assert watch.check(3) == (["a"], [])


@given(st.lists(st.tuples(st.integers(0, 4), st.sets(st.sampled_from("abcd")), st.booleans()), max_size=40))
def test_the_changes_add_up_to_the_idle_streams(steps: list[tuple[int, set[str], bool]]) -> None:
    """At every check, the streams reported idle and not resumed are those last seen at least ``timeout_s`` ago."""
    watch, now, reported = IdleStreams(5), 0, set[str]()
    last: dict[str, int] = {}
    for pause, streams, look in steps:
        now += pause
        watch.seen(sorted(streams), now)
        last |= dict.fromkeys(streams, now)
        if look:
            fallen, back = watch.check(now)
            assert not reported & set(fallen)
            assert set(back) <= reported
            reported = (reported | set(fallen)) - set(back)
            assert reported == {stream for stream, heard in last.items() if now - heard >= 5}
            assert watch.count == len(reported)


class CountedTime(float):
    """A time that counts how often it is compared."""

    uses = 0

    def __rsub__(self, other: float) -> float:
        """``other - self``."""
        CountedTime.uses += 1
        return other - float(self)


def test_a_check_of_a_hundred_thousand_streams_looks_at_few() -> None:
    """Without a change only the oldest are looked at."""
    watch = IdleStreams(10)
    watch.seen((str(i) for i in range(100_000)), CountedTime(0))
    assert watch.check(5) == ([], [])
    assert 1 <= CountedTime.uses <= 3


def test_drops_are_counted_by_stream() -> None:
    """With the last reason; a stream whose latest ten samples were dropped is named until one is applied."""
    pipeline, drops = toy_pipeline(), StreamDrops(max_streams=2)
    drops.observe(pipeline.process(batch(["a"] * 3, [5, 4, 5])))
    assert drops.of("a") == (2, "duplicate")
    assert not drops.all_dropped("a")
    for _ in range(10):
        drops.observe(pipeline.process(batch(["a"], [5])))
    assert drops.all_dropped("a")
    drops.observe(pipeline.process(batch(["a"], [6])))
    assert not drops.all_dropped("a")
    assert drops.of("a") == (12, "duplicate")
    assert drops.of("unknown") == (0, "")


def test_at_most_max_streams_with_drops_are_kept() -> None:
    """Those with the latest drops."""
    pipeline, drops = toy_pipeline(), StreamDrops(max_streams=2)
    for name in ("a", "b", "a", "c"):
        drops.observe(pipeline.process(batch([name] * 2, [1, 1])))
    assert [drops.of(name)[0] for name in "abc"] == [3, 0, 1]
