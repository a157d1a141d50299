from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.core.concatenate import concatenate
from stream_gru.core.errors import StateError
from stream_gru.core.keyed_state import encode
from stream_gru.core.types import NS_PER_S, DropReason, Rejected, SampleBatch
from stream_gru.runtime.ingest.device_counters import DeviceClock
from tests.support.stateful_parts import StateStore, hostile_bytes, rejected_or_usable

S = NS_PER_S
START = 1_772_323_200 * S
WRAP = 2**32 * 1_000_000  # a counter of milliseconds, 49.7 days
ClockRow = tuple[float, float]


def clock_batch(rows: list[tuple[str, int, int]]) -> SampleBatch:
    """Rows of (stream, device time in ns, arrival in ns); their values are their numbers."""
    names = tuple(sorted({row[0] for row in rows}))
    return SampleBatch(
        stream_names=names,
        stream_index=np.array([names.index(row[0]) for row in rows], np.int32),
        time_ns=np.array([row[1] for row in rows], np.int64),
        values=np.arange(len(rows), dtype=np.float32)[:, np.newaxis],
        arrival_ns=np.array([row[2] for row in rows], np.int64),
    )


def events(clock: DeviceClock, rows: list[ClockRow]) -> list[int]:
    """Event times of rows of one stream, in seconds after the start, each row (device s, arrival s)."""
    batch = clock_batch([("a", round(device * S), START + round(arrival * S)) for device, arrival in rows])
    return [(time - START) // S for time in clock.apply(batch).time_ns.tolist()]


def test_the_first_arrival_sets_the_offset_and_distances_are_the_devices() -> None:
    """Network jitter in the arrivals has no effect."""
    clock = DeviceClock(WRAP)
    assert events(clock, [(5, 100), (6, 101.9), (7, 102), (8, 140)]) == [100, 101, 102, 103]
    assert events(clock, [(9, 104)]) == [104]


@pytest.mark.parametrize("unit_ns", [1_000, 1_000_000])
def test_a_counter_that_wraps_around_continues(unit_ns: int) -> None:
    """After 32 bits of its unit the event times continue, at every wraparound."""
    wrap = 2**32 * unit_ns
    clock = DeviceClock(wrap)
    begin = wrap - 3 * S
    rows = [("a", (begin + i * S) % wrap, START + i * S) for i in range(6)]
    assert clock.apply(clock_batch(rows)).time_ns.tolist() == [START + i * S for i in range(6)]
    for turn in (1, 2):
        rows = [("a", (begin + turn * wrap + i * S) % wrap, START + turn * wrap + i * S) for i in range(6)]
        silent = clock.apply(clock_batch([("a", begin, START + turn * wrap)]))
        assert silent.time_ns.tolist() == [START + turn * wrap]
        assert clock.apply(clock_batch(rows[1:])).time_ns.tolist() == [row[2] for row in rows[1:]]


def test_a_device_that_was_restarted_begins_at_its_arrival() -> None:
    """Also one that restarts so fast that its last event is later: time never goes back."""
    clock = DeviceClock(WRAP)
    assert events(clock, [(5000, 0), (5001, 1), (0.5, 20), (1.5, 21)]) == [0, 1, 20, 21]
    rows = [("a", 30 * S, START + 41 * S), ("a", 60 * S, START + 45 * S), ("a", S, START + 46 * S)]
    times = DeviceClock(WRAP).apply(clock_batch(rows)).time_ns.tolist()
    assert times == [START + 41 * S, START + 71 * S, START + 71 * S + 1]


def test_a_late_row_is_not_a_restart() -> None:
    """Up to a second of disorder keeps the offset; late rows are found by their time."""
    clock = DeviceClock(WRAP)
    assert events(clock, [(10, 0), (12, 2), (11.5, 2), (13, 3)]) == [0, 2, 1, 3]
    quick = DeviceClock(2**32)  # nanoseconds: wraps in four seconds
    rows = [("a", 4_000_000_000, START), ("a", 3_500_000_000, START), ("a", 5_032_704, START + 300_000_000)]
    assert (quick.apply(clock_batch(rows)).time_ns - START).tolist() == [0, -500_000_000, 300_000_000]


def test_a_device_that_slept_or_drifted_gets_a_new_offset() -> None:
    """When event and arrival are more than a minute apart; a fast clock is never more than that ahead."""
    clock = DeviceClock(WRAP)
    assert events(clock, [(1, 0), (2, 61), (3, 63), (4, 64)]) == [0, 1, 63, 64]
    fast = DeviceClock(WRAP)
    rows = [("a", i * 11 * S, START + i * 10 * S) for i in range(1000)]
    ahead = fast.apply(clock_batch(rows)).time_ns - np.array([row[2] for row in rows])
    assert ahead.max() <= 61 * S
    assert np.all(np.diff(ahead + np.array([row[2] for row in rows])) > 0)


def test_rows_that_cannot_be_placed_are_rejected() -> None:
    """Without an arrival there is no offset; a negative or huge counter is no time.  Earlier rejects stay counted."""
    rows = [("a", 5 * S, 0), ("a", 5 * S, START), ("a", -1, START), ("a", 2**63 - 1, START)]
    batch = DeviceClock(WRAP).apply(
        replace(
            clock_batch(rows),
            rejected=(
                Rejected(DropReason.TIMESTAMP, 2),
                Rejected(DropReason.PARSE, 1),
            ),
        )
    )
    assert batch.values.tolist() == [[1.0]]
    assert batch.rejected_counts == {DropReason.TIMESTAMP: 5, DropReason.PARSE: 1}
    recorded = DeviceClock(WRAP).apply(replace(clock_batch(rows), arrival_ns=None))
    assert (len(recorded), recorded.rejected_counts) == (0, {DropReason.TIMESTAMP: 4})
    assert len(DeviceClock(WRAP).apply(recorded)) == 0


def test_streams_have_clocks_of_their_own_and_only_so_many() -> None:
    """Beyond the bound no offset is stored, and the arrival is the time."""
    clock = DeviceClock(WRAP, max_streams=2)
    rows = [("b", 7 * S, START), ("a", 70 * S, START + 1), ("c", 700 * S, START + 2), ("c", 701 * S, START + 3)]
    assert clock.apply(clock_batch(rows)).time_ns.tolist() == [START + i for i in range(4)]
    rows = [("a", 71 * S, START + 9), ("b", 9 * S, START + 9), ("c", 702 * S, START + 9)]
    assert clock.apply(clock_batch(rows)).time_ns.tolist() == [START + 1 + S, START + 2 * S, START + 9]


clock_steps = st.tuples(
    st.sampled_from("abc"),
    st.sampled_from([S, S, S, 2 * S, -S // 2, 0, -5 * S, 100 * S, WRAP - 40 * S, -(10**12)]),
    st.sampled_from([S, S, 0, 3 * S, 90 * S, -2 * S]),
)


def later_rows(moves: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Rows whose device time and arrival are so much later than the previous ones."""
    device = dict.fromkeys("abc", WRAP - 3 * S)
    arrival = START
    rows = []
    for stream, by, later in moves:
        device[stream] = (device[stream] + by) % WRAP
        arrival += later
        rows.append((stream, device[stream], arrival))
    return rows


@given(st.lists(clock_steps, max_size=40), st.lists(st.integers(0, 40), max_size=5))
def test_batching_changes_nothing(moves: list[tuple[str, int, int]], cuts: list[int]) -> None:
    """Row by row, at once or cut anywhere: the same event times and clock offsets."""
    rows = later_rows(moves)
    results = []
    for ends in ([len(rows)], sorted({min(cut, len(rows)) for cut in [*cuts, len(rows)]}), range(1, len(rows) + 1)):
        clock, begin, parts = DeviceClock(WRAP, max_streams=2), 0, []
        for end in ends:
            parts.append(clock.apply(clock_batch(rows[begin:end])))
            begin = end
        done = concatenate(parts, 1) if parts else clock_batch([])
        results.append((done.time_ns.tolist(), [clock.state.snapshot(name) for name in ("a", "b")]))
    assert results[0] == results[1] == results[2]


@given(st.lists(clock_steps, max_size=40), st.lists(st.integers(0, 40), max_size=5), st.data())
def test_restarts_and_evictions_change_nothing(
    moves: list[tuple[str, int, int]], restarts: list[int], data: st.DataObject
) -> None:
    """All or one stream stored and restored until its next row: the same events.  All differing streams are dirty."""
    rows = later_rows(moves)
    whole = DeviceClock(WRAP).apply(clock_batch(rows)).time_ns.tolist() if rows else []
    clock, state_store, away = DeviceClock(WRAP), StateStore(), dict[str, bytes]()
    found: list[int] = []
    stored: dict[str, bytes | None] = dict.fromkeys("abc")
    for number, row in enumerate(rows):
        if row[0] in away:
            clock.state.restore(row[0], away.pop(row[0]))
        found += clock.apply(clock_batch([row])).time_ns.tolist()
        differing = {name for name in "abc" if clock.state.snapshot(name) not in (None, stored[name])}
        assert differing <= set(clock.state.dirty_keys())
        if number in restarts:
            for name, saved in away.items():
                clock.state.restore(name, saved)
            away.clear()
            state_store.commit(clock.state)
            clock = DeviceClock(WRAP)
            state_store.fill(clock.state, number)
            stored = {name: clock.state.snapshot(name) for name in "abc"}
        gone = data.draw(st.sampled_from(["", "", "a", "b", "c"]))
        saved_now = clock.state.snapshot(gone)
        if saved_now is not None:
            # State dropped before it was stored is the caller's responsibility.
            away[gone] = state_store.rows[gone] = saved_now
            stored[gone] = saved_now
            clock.state.evict(gone)
    assert found == whole


@given(st.data())
def test_invalid_bytes_raise_only_a_state_error(data: st.DataObject) -> None:
    """Invalid bytes raise StateError or load; in both cases later rows raise nothing."""
    clock = DeviceClock(WRAP)
    rows = clock_batch([("a", 5 * S, START), ("a", 6 * S, START + S), ("a", S, START + 2 * S), ("a", 2**61, 2**61)])
    clock.apply(rows)
    genuine = clock.state.snapshot("a")
    assert genuine is not None
    other = DeviceClock(WRAP)
    rejected_or_usable(other.state, "a", data.draw(hostile_bytes(genuine)), lambda: other.apply(rows))


def test_an_offset_at_the_end_of_time_is_rejected() -> None:
    """It is never stored: the next event would exceed 64 bits."""
    clock = DeviceClock(WRAP)
    with pytest.raises(StateError, match="stored state of device clocks, a is corrupt"):
        clock.state.restore("a", encode((0, 0, 2**63 - 1)))
    assert clock.state.snapshot("a") is None
