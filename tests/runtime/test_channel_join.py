"""Channels that arrive separately become samples on the grid of the period."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import nan

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.core.errors import IncompatibleStateError, StateError
from stream_gru.core.types import NS_PER_S, DropReason, Rejected, SampleBatch
from stream_gru.runtime.ingest.channel_join import ChannelJoiner
from tests.support.stateful_parts import StateStore

ChannelValue = tuple[str, float, int, float]  # stream, seconds, channel, value


def channel_records(*found: ChannelValue, channels: int = 2, **columns: object) -> SampleBatch:
    """Records of single channels."""
    names = tuple(dict.fromkeys(record[0] for record in found))
    values = np.full((len(found), channels), np.nan, np.float32)
    for row, (_, _, channel, value) in enumerate(found):
        values[row, channel] = value
    return SampleBatch(
        names,
        np.array([names.index(record[0]) for record in found], np.int32),
        np.array([round(record[1] * NS_PER_S) for record in found], np.int64),
        values,
        **columns,  # type: ignore[arg-type]
    )


def joiner(channels: int = 2, hold_s: float = 5, allowed_lateness_s: float = 1, **options: int) -> ChannelJoiner:
    """A period of one second."""
    return ChannelJoiner(channels, NS_PER_S, round(hold_s * NS_PER_S), round(allowed_lateness_s * NS_PER_S), **options)


def joined_rows(batch: SampleBatch) -> list[tuple[str, float, list[float | None]]]:
    """Stream, seconds and values of each row, None for what is missing."""
    return [
        (batch.stream_names[s], t / NS_PER_S, [None if math.isnan(v) else v for v in values])
        for s, t, values in zip(batch.stream_index, batch.time_ns.tolist(), batch.values.tolist(), strict=True)
    ]


def joined(one: ChannelJoiner, *found: ChannelValue) -> list[tuple[str, float, list[float | None]]]:
    """The rows that these records complete."""
    return joined_rows(one.join(channel_records(*found)).batch)


def test_a_tick_is_emitted_at_once_when_all_channels_have_reported() -> None:
    """It does not wait when nothing is missing, and its time is on the grid."""
    one = joiner()
    assert joined(one, ("p", 9.2, 0, 1)) == []
    assert joined(one, ("p", 9.9, 1, 2)) == [("p", 10.0, [1, 2])]
    assert joined(one, ("p", 10.0, 0, 3), ("p", 11.0, 1, 4), ("p", 11.0, 0, 5)) == [("p", 11.0, [5, 4])]


def test_a_time_on_the_grid_belongs_to_its_own_tick() -> None:
    """The tick at k holds records after k - 1, up to and including k; also before 1970."""
    for times, ticks in (((3.0, 3.000000001), (3.0, 4.0)), ((-3.5, -3.0 + 1e-9), (-3.0, -2.0))):
        found = joiner(1).join(channel_records(*[("p", time, 0, 1) for time in times], channels=1)).batch
        assert joined_rows(found) == [("p", tick, [1]) for tick in ticks]


def test_a_silent_channel_never_stops_the_others() -> None:
    """The watermark passes a tick without it: its last value is held until it is too old, then it is missing."""
    one = joiner(hold_s=2)
    found = joined(one, ("p", 1, 1, 7), *[("p", float(t), 0, float(t)) for t in range(1, 8)])
    assert found == [
        ("p", 1, [1, 7]),
        ("p", 2, [2, 7]),
        ("p", 3, [3, 7]),
        ("p", 4, [4, None]),
        ("p", 5, [5, None]),
        ("p", 6, [6, None]),
    ]
    assert joined_rows(one.flush()) == [("p", 7, [7, None])]


def test_a_tick_waits_for_its_channels() -> None:
    """Within the wait a channel may come later than the next one's next value."""
    found = joined(joiner(), ("p", 1, 0, 1), ("p", 1.9, 0, 2), ("p", 1, 1, 10), ("p", 2, 1, 20))
    assert found == [("p", 1, [1, 10]), ("p", 2, [2, 20])]
    impatient = joiner(allowed_lateness_s=0.5)
    assert joined(impatient, ("p", 1, 0, 1), ("p", 1.9, 0, 2)) == [("p", 1, [1, None])]


def test_a_complete_tick_waits_for_an_older_one_that_may_still_be_complete() -> None:
    """The slow channel of the older tick is not late because the next tick completed early; both are emitted together,
    in order.
    """
    one = joiner(allowed_lateness_s=2)
    assert joined(one, ("p", 10, 0, 1), ("p", 11, 0, 2), ("p", 11, 1, 20)) == []
    assert joined(one, ("p", 10, 1, 10)) == [("p", 10, [1, 10]), ("p", 11, [2, 20])]
    assert one.pending == 0


def test_the_wait_for_an_older_tick_ends_with_its_watermark() -> None:
    """The complete ticks right after it are emitted with it, those after the next incomplete one are not."""
    one = joiner(allowed_lateness_s=3)
    reported = [("p", t, 0, t) for t in (10, 11, 12, 12.5)] + [("p", t, 1, 10 * t) for t in (11, 12.8)]
    assert joined(one, *reported, ("p", 11.5, 0, 5)) == []
    assert joined(one, ("p", 12.9, 0, 6)) == []
    assert joined(one, ("p", 13.0, 0, 7)) == [("p", 10, [10, None]), ("p", 11, [11, 110])]
    assert joined(one, ("p", 12, 1, 120)) == [("p", 12, [12, 120]), ("p", 13, [7, 128])]


def test_a_tick_that_is_complete_goes_at_once_however_long_the_wait() -> None:
    """Without an older pending tick it does not wait."""
    one = joiner(allowed_lateness_s=3600)
    for t in range(1, 5):
        assert joined(one, ("p", t, 0, 1), ("p", t, 1, 2)) == [("p", t, [1, 2])]


def test_a_record_of_an_emitted_tick_is_late() -> None:
    """It is counted as late and changes nothing, not even held values."""
    one = joiner(allowed_lateness_s=0)
    assert joined(one, ("p", 1, 1, 7), ("p", 2, 0, 1)) == [("p", 1, [None, 7]), ("p", 2, [1, 7])]
    done = one.join(channel_records(("p", 1.5, 1, 99), ("p", 3, 0, 2)))
    assert done.joined == 1
    assert done.batch.rejected_counts == {DropReason.LATE: 1}
    assert joined_rows(done.batch) == [("p", 3, [2, 7])]


def test_a_channel_faster_than_the_period_is_not_late() -> None:
    """A further value after its tick is emitted is held for the next one."""
    one = joiner()
    assert joined(one, ("p", 1.2, 0, 1), ("p", 1.3, 1, 7)) == [("p", 2, [1, 7])]
    done = one.join(channel_records(("p", 1.5, 0, 2), ("p", 1.8, 0, 3), ("p", 1.7, 0, 9), ("p", 2.1, 1, 8)))
    assert (done.joined, done.batch.rejected_counts) == (3, {DropReason.LATE: 1})
    assert joined_rows(one.flush()) == [("p", 3, [3, 8])]


def test_a_record_that_comes_twice_is_a_duplicate_once_its_tick_is_out() -> None:
    """Same channel and time as the last accepted record; another time, or not the time of each channel, is late."""
    one = joiner()
    assert joined(one, ("p", 1.2, 0, 1), ("p", 1.3, 1, 7)) == [("p", 2, [1, 7])]
    twice = one.join(channel_records(("p", 1.2, 0, 1), ("p", 1.3, 1, 7), ("p", 1.8, 0, 3), ("p", 1.8, 0, 3)))
    assert (twice.joined, twice.batch.rejected_counts) == (1, {DropReason.DUPLICATE: 3})
    assert joined(one, ("p", 2.5, 0, 4), ("p", 4, 0, 5)) == [("p", 3, [4, 7])]
    late = one.join(channel_records(("p", 1.8, 0, 3), ("p", 1.4, 1, 7), ("p", 1.3, 1, 7), ("p", 2.5, 0, 4)))
    assert (late.joined, late.batch.rejected_counts) == (0, {DropReason.LATE: 2, DropReason.DUPLICATE: 2})
    both = channel_records(("p", 2.5, 0, 4))
    both.values[0, 1] = 7
    assert one.join(both).batch.rejected_counts == {DropReason.LATE: 1}


def test_a_clock_set_back_restarts_the_grid() -> None:
    """More than an hour back is no late record: pending ticks are emitted, held values cleared, and time continues from
    there.
    """
    one = joiner()
    assert joined(one, ("p", 9000, 0, 1), ("p", 9000, 1, 2), ("p", 9001, 0, 3)) == [("p", 9000, [1, 2])]
    assert joined(one, ("p", 5000, 0, 4), ("p", 5001, 0, 5)) == [("p", 9001, [3, 2]), ("p", 5000, [4, None])]
    assert one.join(channel_records(("p", 4999, 0, 1))).batch.rejected_counts == {DropReason.LATE: 1}


def test_one_time_in_the_future_does_not_stop_later_samples() -> None:
    """After a record with a time a year ahead, the grid restarts: the next records are neither late nor incomplete."""
    one = joiner()
    found = joined(one, ("p", 1, 0, 1), ("p", 1, 1, 2), ("p", 3e7, 0, 9), *[("p", 2.0, c, 3.0) for c in (0, 1)])
    assert found == [("p", 1, [1, 2]), ("p", 3e7, [9, None]), ("p", 2, [3, 3])]


def test_another_sequence_restarts_the_grid() -> None:
    """A boundary is no late record either, and values do not cross it."""
    one = joiner()
    batch = channel_records(("p", 50, 0, 1), ("p", 50, 1, 2), ("p", 7, 0, 3), episode=np.array([4, 4, 5]))
    assert joined_rows(one.join(batch).batch) == [("p", 50, [1, 2])]
    last = one.flush()
    assert joined_rows(last) == [("p", 7, [3, None])]
    assert last.episode is not None
    assert last.episode.tolist() == [5]


def test_the_later_value_of_a_channel_wins() -> None:
    """By event time, whatever the order of arrival."""
    assert joined(joiner(), ("p", 1.8, 0, 8), ("p", 1.3, 0, 3), ("p", 2, 1, 1)) == [("p", 2, [8, 1])]


def test_an_early_record_does_not_show_before_its_tick() -> None:
    """An open tick takes nothing from a later one."""
    one = joiner(allowed_lateness_s=5)
    assert joined(one, ("p", 1, 0, 1), ("p", 3, 1, 30)) == []
    assert joined_rows(one.flush()) == [("p", 1, [1, None]), ("p", 3, [1, 30])]


def test_a_tick_without_a_record_is_not_emitted() -> None:
    """Gaps stay gaps."""
    one = joiner()
    assert joined(one, ("p", 1, 0, 1), ("p", 9, 0, 2)) == [("p", 1, [1, None])]
    assert joined_rows(one.flush()) == [("p", 9, [2, None])]


def test_a_record_without_any_value_moves_the_time_on_and_is_counted() -> None:
    """In a tick with values, in its own tick, in an emitted one: its reason is always non-finite."""
    one = joiner()
    done = one.join(channel_records(("p", 1, 0, 1), ("p", 1, 1, nan), ("p", 5, 0, nan), ("p", 1, 0, nan)))
    assert joined_rows(done.batch) == [("p", 1, [1, None])]
    assert (done.joined, done.batch.rejected_counts) == (1, {DropReason.NON_FINITE: 3})
    assert one.pending == 0


def test_a_record_without_any_value_is_taken_for_its_reset_or_its_label() -> None:
    """Its tick carries them; a reset moves to the next tick if that tick has no value."""
    found = channel_records(
        ("p", 1, 0, nan),
        ("p", 1, 0, 1),
        ("p", 1, 1, 2),
        ("p", 2, 0, nan),
        label=np.array([0, -1, -1, -1], np.int32),
        labels=("a",),
        reset=np.array([False, False, False, True]),
    )
    one = joiner()
    done = one.join(found)
    assert (done.joined, done.batch.rejected_counts, done.batch.labels) == (4, {}, ("a",))
    after = one.join(channel_records(("p", 4, 0, 3), ("p", 4, 1, 4))).batch
    assert after.reset is not None
    assert after.reset.tolist() == [True]


def test_what_records_say_besides_values_is_kept() -> None:
    """A tick has the last label, seq, sequence and arrival of its records, and a reset if any record has one."""
    batch = channel_records(
        ("p", 1, 0, 1),
        ("p", 1, 1, 2),
        ("q", 1, 0, 1),
        device_seq=np.array([7, 8, -1]),
        label=np.array([0, 1, -1], np.int32),
        labels=("a", "b"),
        reset=np.array([True, False, False]),
        episode=np.array([3, 3, -1]),
        arrival_ns=np.array([10, 20, 30]),
    )
    one = joiner()
    out = one.join(batch).batch
    assert (out.device_seq, out.label, out.labels) == (np.array([8]), np.array([0]), ("b",))
    assert (out.reset, out.episode, out.arrival_ns) == (np.array([True]), np.array([3]), np.array([20]))
    plain = one.flush()
    assert (plain.device_seq, plain.label, plain.reset, plain.episode) == (None, None, None, None)


def test_a_late_reset_is_reported_by_the_next_tick() -> None:
    """A late record is dropped, its reset flag is not - unless its tick has reported it already."""
    one = joiner(1)
    one.join(channel_records(("p", 1, 0, 1), ("p", 2, 0, 1), channels=1))
    late = one.join(channel_records(("p", 2, 0, 5), ("p", 3, 0, 1), channels=1, reset=np.array([True, False]))).batch
    assert late.reset is not None
    assert joined_rows(late) == [("p", 3, [1])]
    again = one.join(channel_records(("p", 3, 0, 5), ("p", 4, 0, 1), channels=1, reset=np.array([True, False]))).batch
    assert again.reset is None


def test_rejects_are_carried_over_and_everything_is_counted() -> None:
    """Earlier rejects are kept; records are joined or rejected, none is lost."""
    batch = channel_records(("p", 1, 0, 1), ("q", 1, 0, 1), ("r", 1, 0, 1), rejected=(Rejected(DropReason.PARSE, 4),))
    done = joiner(max_streams=2).join(batch)
    assert done.joined == 2
    assert done.batch.rejected_counts == {DropReason.PARSE: 4, DropReason.STREAM_LIMIT: 1}
    assert batch.received == done.joined + done.batch.received


def test_at_most_64_ticks_of_a_stream_wait() -> None:
    """The oldest is emitted first when there are more."""
    one = joiner(allowed_lateness_s=3600)
    found = joined(one, *[("p", float(t), 0, float(t)) for t in range(1, 67)])
    assert found == [("p", 1, [1, None]), ("p", 2, [2, None])]
    assert one.pending == 64


def test_a_deleted_stream_restarts() -> None:
    """Its pending and held values are gone, and its place is free."""
    one = joiner(max_streams=1)
    joined(one, ("p", 10, 0, 1), ("p", 10, 1, 1), ("p", 11, 0, 1))
    one.state.evict("p")
    one.state.evict("unknown")
    assert one.pending == 0
    assert joined(one, ("q", 1, 0, 2), ("q", 1, 1, 3)) == [("q", 1, [2, 3])]


@pytest.mark.parametrize("sizes", [(0, 1, 0, 0), (1, 0, 0, 0), (1, 1, -1, 0), (1, 1, 0, -1)])
def test_sizes_that_cannot_be_are_refused(sizes: Sequence[int]) -> None:
    """Also rows of other channels."""
    with pytest.raises(ValueError, match="expected channels and a period above 0"):
        ChannelJoiner(*sizes)
    with pytest.raises(ValueError, match=r"expected shape \(N, 3\), got \(1, 2\)"):
        joiner(3).join(channel_records(("p", 1, 0, 1)))


INT64 = st.sampled_from([-(2**63), -(2**63) + 1, -1, 0, 1, 2**63 - 1, 2**63 - 2, 2**62])


@given(st.lists(st.tuples(INT64, INT64, INT64, INT64, st.sampled_from([0.5, nan, math.inf, -math.inf])), min_size=1))
def test_any_numbers_that_a_record_may_have_are_stored_as_they_are(
    found: list[tuple[int, int, int, int, float]],
) -> None:
    """Times, counters, sequences and arrivals at both ends of their range, and infinite values."""
    times, seqs, sequences, arrivals = (np.array(column, np.int64) for column in list(zip(*found, strict=True))[:4])
    batch = SampleBatch(
        ("p",),
        np.zeros(len(found), np.int32),
        times,
        np.array([[row[4], 1] for row in found], np.float32),
        device_seq=seqs,
        episode=sequences,
        arrival_ns=arrivals,
    )
    one, other = joiner(), joiner()
    one.join(batch)
    stored = StateStore()
    stored.commit(one.state)
    stored.fill(other.state)
    first, second = one.flush(), other.flush()
    assert first.values.tobytes() == second.values.tobytes()
    assert first.time_ns.tolist() == second.time_ns.tolist()


def memory_of(one: ChannelJoiner, name: str = "p") -> bytes:
    """The stored state of a stream in a joiner."""
    data = one.state.snapshot(name)
    assert data is not None
    return data


def test_the_same_memory_gives_the_same_bytes() -> None:
    """Independent of the order in which ticks started; an unknown stream has no state."""
    one, other = joiner(allowed_lateness_s=60), joiner(allowed_lateness_s=60)
    joined(one, ("p", 9, 0, 1), ("p", 7, 0, 2), ("p", 8, 1, 3), ("p", 9, 0, 1))
    joined(other, ("p", 8, 1, 3), ("p", 9, 0, 1), ("p", 7, 0, 2))
    assert memory_of(one) == memory_of(other)
    assert one.state.snapshot("q") is None


def test_what_comes_back_is_as_it_was_stored_and_counts_among_the_streams() -> None:
    """It is not dirty; a restored stream always has a place, but then a new one may not."""
    one, other = joiner(max_streams=1), joiner(max_streams=1)
    joined(one, ("p", 1, 0, 1))
    joined(other, ("q", 1, 0, 1))
    data = memory_of(one)
    joined(one, ("p", 1, 1, 2))
    assert one.state.dirty_keys() == ("p",)
    one.state.restore("p", data)
    assert one.state.dirty_keys() == ()
    other.state.mark_clean()
    other.state.restore("p", data)
    assert joined(other, ("p", 1, 1, 2), ("q", 1, 1, 2)) == [("p", 1, [1, 2]), ("q", 1, [1, 2])]
    assert other.join(channel_records(("r", 1, 0, 1))).batch.rejected_counts == {DropReason.STREAM_LIMIT: 1}


def test_the_state_of_another_model_is_distinguished_from_damage() -> None:
    """Other channels and another period are another model; a value beyond float32, or unordered ticks, are damage."""
    one = joiner(allowed_lateness_s=60)
    joined(one, ("p", 1, 0, 1), ("p", 2, 0, 1))
    genuine = memory_of(one)
    with pytest.raises(
        IncompatibleStateError, match="expected 3 channels every 1000000000 ns, got 2 every 1000000000 ns"
    ):
        joiner(3).state.restore("p", genuine)
    with pytest.raises(IncompatibleStateError, match="expected 2 channels every 5 ns"):
        ChannelJoiner(2, 5, 0, 0).state.restore("p", genuine)
    period, held, held_ns, ticks, *rest = msgspec.msgpack.decode(genuine)
    for damaged, why in (
        ((period, [1e39, nan], held_ns, ticks), "expected float32 values"),
        ((period, held, held_ns, ticks[::-1]), "expected windows in time order"),
        ((period, held, held_ns, [ticks[0], ticks[0]]), "expected windows in time order"),
        ((period, held, held_ns, ticks * 40), "length <= 64"),
    ):
        with pytest.raises(StateError, match=f"stored state of the channel join, p.*: .*{why}"):
            one.state.restore("p", msgspec.msgpack.encode((*damaged, *rest)))
    assert memory_of(one) == genuine
