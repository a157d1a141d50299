"""The joiner uses event time: no cut of the records into batches changes a row, and no record is lost uncounted.

Neither does a restart, nor a stream that is evicted in between.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_gru.core.concatenate import concatenate
from stream_gru.core.types import NS_PER_S, DropReason, Rejected, SampleBatch, empty_batch
from stream_gru.runtime.ingest.channel_join import ChannelJoiner
from tests.support.batches import CHANNELS
from tests.support.stateful_parts import StateStore, hostile_bytes, rejected_or_usable

settings_of = st.tuples(st.sampled_from([0, 1, 2, 5]), st.sampled_from([0, 1, 2, 80]))


@st.composite
def partial_records(draw: st.DrawFn, jumps: tuple[int, ...], max_rows: int = 120) -> SampleBatch:
    """Records of one or more channels of up to three streams; ``jumps``: tenths of a second between two of a stream."""
    n, streams = draw(st.integers(1, max_rows)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stream = rng.integers(0, streams, n).astype(np.int32)
    time = np.zeros(n, np.int64)
    for s in range(streams):
        time[stream == s] = np.cumsum(rng.choice(jumps, int((stream == s).sum())))
    values = rng.normal(size=(n, CHANNELS)).astype(np.float32)
    values[rng.random((n, CHANNELS)) < draw(st.sampled_from([0.3, 0.7, 0.9]))] = np.nan
    odd = draw(st.booleans())
    return SampleBatch(
        tuple(f"s{i}" for i in range(streams)),
        stream,
        time * (NS_PER_S // 10),
        values,
        device_seq=np.arange(n) if odd else None,
        label=rng.integers(-1, 2, n).astype(np.int32) if odd else None,
        labels=("a", "b") if odd else (),
        reset=rng.random(n) < 0.05 if odd else None,
        episode=np.cumsum(rng.random(n) < 0.02) if draw(st.booleans()) else None,
        arrival_ns=np.arange(n) if odd else None,
    )


def build_joiner(options: tuple[int, int], max_streams: int = 2) -> ChannelJoiner:
    """A period of a second; ages and waits in seconds."""
    return ChannelJoiner(CHANNELS, NS_PER_S, options[0] * NS_PER_S, options[1] * NS_PER_S, max_streams=max_streams)


def join_batches(one: ChannelJoiner, batches: list[SampleBatch]) -> tuple[SampleBatch, int]:
    """All rows of the batches, and how many records were joined."""
    done = [one.join(batch) for batch in batches]
    return concatenate([*(found.batch for found in done), one.flush()], CHANNELS), sum(d.joined for d in done)


def plain_rows(batch: SampleBatch) -> list[tuple[object, ...]]:
    """Each row as plain values, for comparison bit by bit."""
    n = len(batch)
    label = ["" if code < 0 else batch.labels[code] for code in batch.label] if batch.label is not None else [""] * n
    plain = [
        np.full(n, fill).tolist() if column is None else column.tolist()
        for column, fill in ((batch.device_seq, -1), (batch.reset, False), (batch.episode, -1), (batch.arrival_ns, 0))
    ]
    names = [batch.stream_names[s] for s in batch.stream_index]
    values = [row.tobytes() for row in batch.values]
    return list(zip(names, batch.time_ns.tolist(), values, label, *plain, strict=True))


HOSTILE = (0, 1, 3, 5, 10, 10, 10, 12, 40, -1, -4, -15, 700, -50_000)


@settings(max_examples=200)
@given(partial_records(HOSTILE), settings_of, st.lists(st.integers(0, 120), max_size=12))
def test_batch_boundaries_change_nothing(batch: SampleBatch, options: tuple[int, int], places: list[int]) -> None:
    """Any cut, and one record at a time: the same rows in the same order, and the same counts."""
    whole, joined = join_batches(build_joiner(options), [batch])
    edges = [0, *sorted({min(place, len(batch)) for place in places}), len(batch)]
    for cuts in (edges, range(len(batch) + 1)):
        found, count = join_batches(build_joiner(options), [batch.take(slice(a, b)) for a, b in pairwise(cuts)])
        assert plain_rows(found) == plain_rows(whole)
        assert (found.rejected, count) == (whole.rejected, joined)


@settings(max_examples=150)
@given(partial_records(HOSTILE), settings_of)
def test_every_record_is_joined_or_rejected(batch: SampleBatch, options: tuple[int, int]) -> None:
    """Received = joined + rejected; each row has a value and lies on the grid; few ticks are pending."""
    one = build_joiner(options)
    done = one.join(batch)
    assert batch.received == done.joined + sum(done.batch.rejected_counts.values())
    silent = np.isnan(batch.values).all(axis=1)
    assert set(done.batch.rejected_counts) <= {
        DropReason.LATE,
        DropReason.DUPLICATE,
        DropReason.STREAM_LIMIT,
        *([DropReason.NON_FINITE] if silent.any() else []),
    }
    assert one.pending <= 64 * 2
    for rows in (done.batch, one.flush()):
        assert not np.isnan(rows.values).all(axis=1).any()
        assert not (rows.time_ns % NS_PER_S).any()
    assert one.pending == 0
    assert not len(one.flush())


@settings(max_examples=150)
@given(partial_records((0, 1, 3, 5, 10, 12, -4, -15)), st.sampled_from([1, 2, 5]))
def test_no_tick_goes_before_it_is_complete_or_its_wait_is_over(batch: SampleBatch, wait: int) -> None:
    """Each stream's ticks are emitted in order; no value is held here, so a row has only its own tick's values."""
    own = batch.take(batch.stream_index == batch.stream_index[0])
    own = SampleBatch(own.stream_names, own.stream_index, own.time_ns, own.values)
    one = ChannelJoiner(CHANNELS, NS_PER_S, 0, wait * NS_PER_S)
    emitted: list[int] = []
    for end in range(1, len(own) + 1):
        found = one.join(own.take(slice(end - 1, end))).batch
        watermark = int(own.time_ns[:end].max()) - wait * NS_PER_S
        for time, values in zip(found.time_ns.tolist(), found.values, strict=True):
            assert time <= watermark or not np.isnan(values).any()
            emitted.append(time)
    assert emitted == sorted(set(emitted))


@settings(max_examples=150)
@given(partial_records(HOSTILE), settings_of)
def test_streams_do_not_influence_each_other(batch: SampleBatch, options: tuple[int, int]) -> None:
    """A stream alone gives the same rows as among others."""
    together = plain_rows(join_batches(build_joiner(options), [batch])[0])
    first = batch.stream_index[0]
    alone = join_batches(build_joiner(options), [batch.take(batch.stream_index == first)])[0]
    assert plain_rows(alone) == [row for row in together if row[0] == batch.stream_names[first]]


@settings(max_examples=150)
@given(partial_records((0, 1, 3, 5, 10, 12, 40)), st.sampled_from([1, 2, 5]), st.sampled_from([1, 2, 4]))
def test_records_in_order_give_the_last_value_of_each_channel(batch: SampleBatch, age: int, wait: int) -> None:
    """With one channel silent and the rest in order, a row holds each one's last value up to it, if not too old."""
    own = batch.take(batch.stream_index == 0)
    values = own.values.copy()
    values[:, 2] = np.nan
    own = SampleBatch(own.stream_names, own.stream_index, own.time_ns, values)
    rows, _ = join_batches(ChannelJoiner(CHANNELS, NS_PER_S, age * NS_PER_S, wait * NS_PER_S), [own])
    reported = ~np.isnan(values)
    ticks = -(-own.time_ns // NS_PER_S) * NS_PER_S
    assert rows.time_ns.tolist() == sorted(set(ticks[reported.any(axis=1)].tolist()))
    for time, row in zip(rows.time_ns.tolist(), rows.values, strict=True):
        young = ((own.time_ns >= time - age * NS_PER_S) | (ticks == time)) & (own.time_ns <= time)
        for channel in range(CHANNELS):
            known = values[young & reported[:, channel], channel]
            assert row[channel].tobytes() == (known[-1] if known.size else np.float32(np.nan)).tobytes()


def test_no_records_give_no_rows() -> None:
    """An empty batch gives no rows; its rejects are passed on."""
    done = build_joiner((1, 1)).join(empty_batch(CHANNELS, (Rejected(DropReason.PARSE, 2),)))
    assert (len(done.batch), done.joined, done.batch.rejected_counts) == (0, 0, {DropReason.PARSE: 2})


@settings(max_examples=200)
@given(partial_records(HOSTILE), settings_of, st.lists(st.integers(0, 120), min_size=1, max_size=12))
def test_restarts_change_nothing(batch: SampleBatch, options: tuple[int, int], places: list[int]) -> None:
    """Cut anywhere, stored, discarded and restored in another order: the same rows, the same counts."""
    whole, joined = join_batches(build_joiner(options), [batch])
    one, stored, parts, count = build_joiner(options), StateStore(), [], 0
    edges = [0, *sorted({min(place, len(batch)) for place in places}), len(batch)]
    for begin, end in pairwise(edges):
        done = one.join(batch.take(slice(begin, end)))
        parts.append(done.batch)
        count += done.joined
        stored.commit(one.state)
        one = build_joiner(options)
        stored.fill(one.state, seed=begin)
    found = concatenate([*parts, one.flush()], CHANNELS)
    assert plain_rows(found) == plain_rows(whole)
    assert (found.rejected, count) == (whole.rejected, joined)
    stored.commit(one.state)
    after = build_joiner(options)
    stored.fill(after.state)
    assert not len(after.flush())


@settings(max_examples=150)
@given(partial_records(HOSTILE), settings_of, st.integers(0, 2**32 - 1))
def test_an_evicted_and_restored_stream_is_the_same(batch: SampleBatch, options: tuple[int, int], seed: int) -> None:
    """Any streams, evicted at any moment, restored at their next record."""
    whole, joined = join_batches(build_joiner(options, 3), [batch])
    rng, one, away = np.random.default_rng(seed), build_joiner(options, 3), dict[str, bytes]()
    parts, count = [], 0
    for row in range(len(batch)):
        name = batch.stream_names[batch.stream_index[row]]
        if name in away:
            one.state.restore(name, away.pop(name))
        done = one.join(batch.take(slice(row, row + 1)))
        parts.append(done.batch)
        count += done.joined
        for name in batch.stream_names:
            data = one.state.snapshot(name) if rng.random() < 0.3 else None
            if data is not None:
                away[name] = data
                one.state.evict(name)
                assert name not in one.state.dirty_keys()
    for name, data in away.items():
        one.state.restore(name, data)
    found = concatenate([*parts, one.flush()], CHANNELS)
    assert plain_rows(found) == plain_rows(whole)
    assert (found.rejected, count) == (whole.rejected, joined)


@settings(max_examples=100)
@given(partial_records(HOSTILE), settings_of, st.lists(st.integers(0, 120), max_size=5))
def test_every_stream_with_a_changed_state_is_dirty(
    batch: SampleBatch, options: tuple[int, int], stores: list[int]
) -> None:
    """After each record: every stream whose state differs from the last commit is named, and only streams with a
    record.
    """
    one = build_joiner(options)
    stored = dict.fromkeys(batch.stream_names, one.state.snapshot("unknown"))
    seen: set[str] = set()
    for row in range(len(batch)):
        one.join(batch.take(slice(row, row + 1)))
        seen.add(batch.stream_names[batch.stream_index[row]])
        differing = {name for name in batch.stream_names if one.state.snapshot(name) != stored[name]}
        assert differing <= set(one.state.dirty_keys()) <= seen
        if row in stores:
            one.state.mark_clean()
            stored = {name: one.state.snapshot(name) for name in batch.stream_names}
            seen.clear()
    before = {name: one.state.snapshot(name) for name in batch.stream_names}
    one.state.mark_clean()
    one.flush()
    assert {name for name in batch.stream_names if one.state.snapshot(name) != before[name]} <= set(
        one.state.dirty_keys()
    )


@settings(max_examples=300)
@given(partial_records(HOSTILE, 20), settings_of, st.data())
def test_invalid_bytes_raise_only_a_state_error(
    batch: SampleBatch, options: tuple[int, int], data: st.DataObject
) -> None:
    """Invalid bytes raise StateError or load; in both cases later records raise nothing."""
    one, other = build_joiner(options, 3), build_joiner(options, 3)
    one.join(batch)
    name = batch.stream_names[batch.stream_index[0]]
    genuine = one.state.snapshot(name)
    assert genuine is not None
    strange = data.draw(hostile_bytes(genuine))
    rejected_or_usable(other.state, name, strange, lambda: (other.join(batch), other.flush()))
