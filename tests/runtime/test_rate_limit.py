"""The rate limit: how many samples a second are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.core.types import NS_PER_S, DropReason, SampleBatch, empty_batch
from stream_gru.runtime.ingest.ingest import RateLimit
from tests.support.batches import NOON_NS

Arrival = tuple[int, int]  # stream, arrival


def numbered_samples(rows: Sequence[Arrival]) -> SampleBatch:
    """A batch of rows; the value of each is its number, to identify the rows that pass."""
    return SampleBatch(
        stream_names=("a", "b", "c"),
        stream_index=np.array([stream for stream, _ in rows], np.int32),
        time_ns=np.arange(len(rows), dtype=np.int64),
        values=np.arange(len(rows), dtype=np.float32)[:, None],
        arrival_ns=np.array([arrival for _, arrival in rows], np.int64),
    )


def allowed(limit: RateLimit, rows: Sequence[Arrival]) -> list[bool]:
    """Which rows pass, and that the others are counted."""
    batch = limit.apply(numbered_samples(rows))
    lost = len(rows) - len(batch)
    assert batch.rejected_counts == ({DropReason.RATE: lost} if lost else {})
    left = set(batch.time_ns.tolist())
    return [row in left for row in range(len(rows))]


def test_without_a_limit_nothing_is_looked_at() -> None:
    """0, the default, is no limit: a delayed burst is accepted whole."""
    batch = numbered_samples([(0, NOON_NS)] * 1000)
    assert RateLimit().apply(batch) is batch


def test_a_stream_is_held_to_its_rate_and_the_good_one_beside_it_is_applied() -> None:
    """At 10 a second a burst of 10 passes, then one per 100 ms; another stream has its own bucket."""
    limit = RateLimit(per_s_of_a_stream=10)
    assert allowed(limit, [(0, NOON_NS)] * 12 + [(1, NOON_NS)]) == [True] * 10 + [False] * 2 + [True]
    assert allowed(limit, [(0, NOON_NS + 99_999_999), (0, NOON_NS + 100_000_000), (0, NOON_NS + 100_000_001)]) == [
        False, True, False,
    ]  # fmt: skip


def test_all_streams_together_are_held_to_a_rate() -> None:
    """Of three streams at once the first rows are accepted."""
    assert allowed(RateLimit(per_s=2), [(0, NOON_NS), (1, NOON_NS), (2, NOON_NS)]) == [True, True, False]


def test_a_row_refused_for_its_stream_costs_the_others_nothing() -> None:
    """A flood from one device does not block the others."""
    limit = RateLimit(per_s=5, per_s_of_a_stream=2)
    assert allowed(limit, [(0, NOON_NS)] * 100 + [(1, NOON_NS)] * 2) == [True] * 2 + [False] * 98 + [True] * 2


def test_a_clock_that_is_set_back_does_not_close_the_bucket() -> None:
    """Years back, the rate is limited from there on."""
    limit = RateLimit(per_s_of_a_stream=1)
    assert allowed(limit, [(0, NOON_NS)]) == [True]
    back = [NOON_NS - 10**18 + i * NS_PER_S for i in range(4)]
    assert allowed(limit, [(0, arrival) for arrival in back]) == [False, True, True, True]


@pytest.mark.parametrize("arrival", [0, -5, 2**63 - 1])
def test_an_arrival_that_is_none_limits_nothing(arrival: int) -> None:
    """Recorded samples have no arrival; no number overflows."""
    assert allowed(RateLimit(1, 1), [(0, arrival)] * 50) == [True] * 50
    assert RateLimit(1, 1).apply(empty_batch(2)).received == 0


def test_of_too_many_streams_the_one_silent_longest_is_forgotten() -> None:
    """The memory is bounded; the bucket of a forgotten stream is full again."""
    limit = RateLimit(per_s_of_a_stream=1, max_streams=2)
    assert allowed(limit, [(0, NOON_NS), (1, NOON_NS), (0, NOON_NS)]) == [True, True, False]
    assert allowed(limit, [(2, NOON_NS), (0, NOON_NS), (1, NOON_NS)]) == [True, False, True]
    assert len(limit._full_ns) == 2


arrivals = st.lists(
    st.tuples(st.integers(0, 2), st.one_of(st.integers(0, 300_000_000), st.integers(-(10**10), 10**10))), max_size=40
)


@settings(max_examples=300)
@given(
    arrivals,
    st.lists(st.integers(0, 40), max_size=5),
    st.sampled_from([0, 3, 20, 1000]),
    st.sampled_from([0, 2, 7, 0.5]),
    st.sampled_from([1, 2, 100]),
    st.booleans(),
)
def test_which_rows_are_taken_does_not_depend_on_how_they_are_batched(
    steps: list[Arrival], cuts: list[int], per_s: float, of_a_stream: float, streams: int, forwards: bool
) -> None:
    """Any batches give the result of single rows, for later rows too."""
    now, all_rows = NOON_NS, []
    for stream, step in steps:
        now += abs(step) if forwards else step
        all_rows.append((stream, now))
    whole, cut, alone = (RateLimit(per_s, of_a_stream, streams) for _ in range(3))
    edges = [0, *sorted(cuts), len(all_rows)]
    expected = [flag for row in all_rows for flag in allowed(alone, [row])]
    assert allowed(whole, all_rows) == expected
    parts = [all_rows[a:b] for a, b in pairwise(edges)]
    assert [flag for part in parts for flag in allowed(cut, part)] == expected
    assert list(alone._full_ns) == list(whole._full_ns) == list(cut._full_ns)


@settings(max_examples=100)
@given(st.lists(st.integers(0, 10**9), max_size=200), st.sampled_from([1, 5, 40]))
def test_no_second_ever_lets_more_through_than_two_buckets(steps: list[int], rate: int) -> None:
    """In any window of a second at most the bucket and its refill are accepted."""
    arrivals = (NOON_NS + np.cumsum(np.array(steps, np.int64))).tolist() if steps else []
    flags = allowed(RateLimit(per_s=rate), [(0, arrival) for arrival in arrivals])
    times = np.array([arrival for arrival, flag in zip(arrivals, flags, strict=True) if flag], np.int64)
    for first in times.tolist():
        assert np.count_nonzero((times >= first) & (times < first + NS_PER_S)) <= 2 * rate
