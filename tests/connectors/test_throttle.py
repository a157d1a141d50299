"""Fewer outputs: one per interval, or those with a change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.config.connector import SinkContext
from stream_gru.connectors.registry import build_sink
from stream_gru.connectors.sinks.stdout import StdoutSinkConfig
from stream_gru.connectors.sinks.throttle import Throttled
from stream_gru.core.commit_records import FileOffset, FlushResult, OutboxState, SinkCheckpoint
from stream_gru.core.protocols import HasState, Sink
from stream_gru.core.types import NS_PER_S, OutputSpec, PredictionBatch, ResetReason, SinkHealth, Status
from tests.support.batches import part, prediction_batches
from tests.support.stateful_parts import StateStore, hostile_bytes, rejected_or_usable

WRITTEN = FlushResult(file_offset=FileOffset("somewhere", 17))


@dataclass
class Heard:
    """A sink that records its calls."""

    batches: list[PredictionBatch] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def open(self, checkpoint: SinkCheckpoint | None) -> None:
        """Remember."""
        self.calls.append(f"open {checkpoint}")

    def ready(self) -> bool:
        """Remember."""
        self.calls.append("ready")
        return False

    def write(self, batch: PredictionBatch) -> None:
        """Store it."""
        self.batches.append(batch)

    def flush(self) -> FlushResult:
        """Remember."""
        self.calls.append("flush")
        return WRITTEN

    def committed(self) -> None:
        """Remember."""
        self.calls.append("committed")

    def close(self) -> None:
        """Remember."""
        self.calls.append("close")

    def health(self) -> SinkHealth:
        """Some rows are waiting."""
        return SinkHealth(queued=4)

    @property
    def rows(self) -> list[tuple[str, int]]:
        """Stream and time of all written rows."""
        return [
            (b.stream_names[s], t)
            for b in self.batches
            for s, t in zip(b.stream_index, b.time_ns.tolist(), strict=True)
        ]


class Telling(Heard):
    """One that shows which streams are idle, and passes its outputs on."""

    def handoff(self) -> OutboxState:
        """Something."""
        return OutboxState(last_number=3)

    def adopt(self, state: OutboxState) -> None:
        """Remember."""
        self.calls.append(f"adopted {state.last_number}")

    def stream_status(self, stream: str, online: bool) -> None:
        """Remember."""
        self.calls.append(f"{stream} {online}")


def class_outputs(
    times: list[float], classes: str = "", alarm: str = "", status: str = "", reset: str = ""
) -> PredictionBatch:
    """Outputs of one stream: a letter each for the class, an alarm (``!``), warming (``w``), a reset (its code)."""
    n = len(times)
    spec = OutputSpec("m", labels=("a", "b"))
    likely = np.array([[1, 0] if c == "a" else [0, 1] if c == "b" else [np.nan, 0] for c in classes], np.float32)
    return PredictionBatch(
        spec,
        ("p",),
        np.zeros(n, np.int32),
        np.array([round(t * NS_PER_S) for t in times], np.int64),
        np.array([Status.WARMING if c == "w" else Status.OK for c in status.ljust(n)], np.uint8),
        np.array([int(c) for c in reset.ljust(n, "0")], np.uint8),
        np.arange(1, n + 1),
        np.zeros(n, np.int32),
        probabilities=likely if classes else None,
        alarm=np.array([c == "!" for c in alarm]) if alarm else None,
    )


def passed(out: PredictionBatch, mode: str, interval_s: float = 60) -> list[float]:
    """Seconds of the rows that pass, written all at once."""
    sink = Heard()
    one = Throttled(sink, mode, interval_s)  # type: ignore[arg-type]
    one.write(out)
    return [time / NS_PER_S for _, time in sink.rows]


def test_the_first_output_of_each_interval_passes() -> None:
    """Intervals are those of event time since 1970, independent of the daemon's start."""
    assert passed(class_outputs([50, 59, 60, 61, 119, 180, 181]), "interval") == [50, 60, 180]
    assert passed(class_outputs([-61, -60, -1, 0]), "interval") == [-61, -60, 0]
    assert passed(class_outputs([0.1, 0.3, 0.6]), "interval", 0.5) == [0.1, 0.6]


def test_a_change_of_class_alarm_or_trust_passes() -> None:
    """Each is compared with the output before it; a non-finite output is a class of its own."""
    assert passed(class_outputs([1, 2, 3, 4, 5, 6], classes="aabb?a"), "change") == [1, 3, 5, 6]
    assert passed(class_outputs([1, 2, 3, 4], classes="aaaa", alarm=" !! "), "change") == [1, 2, 4]
    assert passed(class_outputs([1, 2, 3, 4], status="ww"), "change") == [1, 3]


def test_independent_classes_count_as_a_set() -> None:
    """Another set of likely classes is a change."""
    out = replace(
        class_outputs([1, 2, 3, 4], classes="aaaa"),
        spec=OutputSpec("m", labels=("a", "b"), exclusive=False),
        probabilities=np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.6], [0.1, 0.1]], np.float32),
    )
    assert passed(out, "change") == [1, 3, 4]


@pytest.mark.parametrize("mode", ["interval", "change"])
def test_a_reset_always_passes(mode: str) -> None:
    """Except those of the windowed regime, which occur regularly."""
    resets = f"0{ResetReason.GAP:d}{ResetReason.WINDOW:d}{ResetReason.COMMAND:d}0"
    assert passed(class_outputs([1, 2, 3, 4, 5], reset=resets), mode) == [1, 2, 4]


@given(prediction_batches(40), st.sampled_from(["interval", "change"]), st.lists(st.integers(0, 40), max_size=6))
def test_batches_do_not_matter(out: PredictionBatch, mode: str, places: list[int]) -> None:
    """However a batch is cut, the same rows pass, unchanged and in order."""
    out = replace(out, time_ns=np.sort(out.time_ns % (600 * NS_PER_S)))
    whole, cut = Heard(), Heard()
    Throttled(whole, mode).write(out)  # type: ignore[arg-type]
    parts = Throttled(cut, mode)  # type: ignore[arg-type]
    edges = [0, *sorted(min(place, len(out)) for place in places), len(out)]
    for a, b in pairwise(edges):
        parts.write(part(out, slice(a, b)))
    assert cut.rows == whole.rows
    assert {name for name, _ in whole.rows} == {out.stream_names[s] for s in out.stream_index}


def test_rows_are_taken_with_all_their_columns() -> None:
    """A part of a batch has all its columns, and counts nothing twice."""
    out = replace(
        class_outputs([1, 2, 3], classes="aba", alarm=" ! "), device_seq=np.arange(3), resets={ResetReason.GAP: 1}
    )
    some = out.take(np.array([0, 2]))
    assert len(some) == 2
    assert some.time_ns.tolist() == [NS_PER_S, 3 * NS_PER_S]
    assert some.device_seq is not None
    assert some.device_seq.tolist() == [0, 2]
    assert some.probabilities is not None
    assert some.probabilities.shape == (2, 2)
    assert (some.forecast, some.dropped, some.resets) == (None, {}, {})


def test_everything_else_is_the_sink_s() -> None:
    """Opening, flushing, committing, closing, health; idle streams and unsent outputs where the sink supports them."""
    sink = Telling()
    one = Throttled(sink, "change")
    assert isinstance(one, Sink)
    one.open(None)
    assert not one.ready()
    assert one.flush() is WRITTEN
    one.committed()
    one.close()
    assert one.health() == SinkHealth(queued=4)
    one.stream_status("p", False)
    one.adopt(one.handoff())
    assert sink.calls == ["open None", "ready", "flush", "committed", "close", "p False", "adopted 3"]
    plain = Throttled(Heard(), "change")
    plain.stream_status("p", False)
    plain.adopt(plain.handoff())
    assert plain.handoff() == OutboxState()


@given(
    prediction_batches(40),
    st.sampled_from(["interval", "change"]),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 9),
)
def test_a_restart_lets_nothing_more_through(
    out: PredictionBatch, mode: str, kill: int, commit: int, seed: int
) -> None:
    """One that continues after its last commit passes the same rows as one that was never stopped."""
    out = replace(out, time_ns=np.sort(out.time_ns % (600 * NS_PER_S)))
    commit, kill = sorted((min(commit, len(out)), min(kill, len(out))))
    whole, first, second, stored = Heard(), Heard(), Heard(), StateStore()
    Throttled(whole, mode).write(out)  # type: ignore[arg-type]
    killed, again = Throttled(first, mode), Throttled(second, mode)  # type: ignore[arg-type]
    assert isinstance(killed, HasState)
    for row in range(commit):
        killed.write(part(out, slice(row, row + 1)))
        if row % 3 == 0:
            stored.commit(killed.state)
    stored.commit(killed.state)
    committed = list(first.rows)
    killed.write(part(out, slice(commit, kill)))
    stored.fill(again.state, seed)
    again.write(part(out, slice(commit, len(out))))
    assert committed + second.rows == whole.rows


def test_only_what_has_changed_is_stored() -> None:
    """An output that passes and equals the one before it changes no state; a forgotten stream is as never seen."""
    sink = Heard()
    one = Throttled(sink, "interval", 60)
    one.write(class_outputs([1, 2]))
    assert list(one.state.dirty_keys()) == ["p"]
    one.state.mark_clean()
    one.write(class_outputs([3, 4], reset=f"{ResetReason.GAP:d}0"))
    assert list(one.state.dirty_keys()) == []
    one.write(class_outputs([61]))
    assert list(one.state.dirty_keys()) == ["p"]
    one.state.evict("p")
    one.state.evict("unknown")
    assert list(one.state.dirty_keys()) == []
    assert one.state.snapshot("p") is None
    one.write(class_outputs([62]))
    assert [time / NS_PER_S for _, time in sink.rows] == [1, 3, 61, 62]


def test_what_another_throttle_has_stored_does_not_count() -> None:
    """After a change of mode or interval the first output of each stream passes."""
    ways: list[tuple[Literal["interval", "change"], float]] = [("interval", 60), ("interval", 30), ("change", 60)]
    for kept in ways:
        before = Throttled(Heard(), *kept)
        before.write(class_outputs([1], classes="a"))
        data = before.state.snapshot("p")
        assert data is not None
        for way in ways:
            sink = Heard()
            after = Throttled(sink, *way)
            after.state.restore("p", data)
            after.write(class_outputs([2], classes="a"))
            assert len(sink.rows) == (way != kept)


@given(st.data(), st.sampled_from(["interval", "change"]))
def test_strange_bytes_are_refused_or_usable(data: st.DataObject, mode: str) -> None:
    """Damaged bytes are a StateError, and bytes that load are usable."""
    before, one = Throttled(Heard(), mode), Throttled(Heard(), mode)  # type: ignore[arg-type]
    before.write(class_outputs([1], classes="a", alarm="!"))
    genuine = before.state.snapshot("p")
    assert genuine is not None
    rejected_or_usable(
        one.state,
        "p",
        data.draw(hostile_bytes(genuine)),
        lambda: one.write(class_outputs([2, 3], classes="ab", alarm="! ")),
    )


def test_the_configuration_puts_it_before_a_sink() -> None:
    """`throttle` of any sink table."""
    assert isinstance(build_sink(StdoutSinkConfig(throttle="change"), SinkContext("stdout")), Throttled)
    assert not isinstance(build_sink(StdoutSinkConfig(), SinkContext("stdout")), Throttled)
