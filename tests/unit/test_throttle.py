"""Fewer outputs: one in each interval, or those where something changes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.config.live import StdoutSinkConfig
from stream_gru.sinks import build_sink
from stream_gru.sinks.throttle import Throttled
from stream_gru.types import NS_PER_S, OutputSpec, PredictionBatch, ResetReason, SinkHealth, Status
from tests.support.predictions import part, prediction_batches


@dataclass
class Kept:
    """A sink that remembers."""

    batches: list[PredictionBatch] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def open(self) -> None:
        """Remember."""
        self.calls.append("open")

    def write(self, batch: PredictionBatch) -> None:
        """Keep."""
        self.batches.append(batch)

    def flush(self) -> int:
        """Remember."""
        self.calls.append("flush")
        return 17

    def close(self) -> None:
        """Remember."""
        self.calls.append("close")

    def health(self) -> SinkHealth:
        """Some."""
        return SinkHealth(queued=4)

    @property
    def rows(self) -> list[tuple[str, int]]:
        """Stream and time of all that came."""
        return [(b.streams[s], t) for b in self.batches for s, t in zip(b.stream, b.time_ns.tolist(), strict=True)]


class Telling(Kept):
    """One that wants to know who is silent."""

    def stream_status(self, stream: str, online: bool) -> None:
        """Remember."""
        self.calls.append(f"{stream} {online}")


def outputs(
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
    sink = Kept()
    one = Throttled(sink, mode, interval_s)  # type: ignore[arg-type]
    one.write(out)
    assert one.withheld == len(out) - len(sink.rows)
    return [time / NS_PER_S for _, time in sink.rows]


def test_the_first_output_of_each_interval_passes() -> None:
    """Intervals are those of event time since 1970, whenever the daemon was started."""
    assert passed(outputs([50, 59, 60, 61, 119, 180, 181]), "interval") == [50, 60, 180]
    assert passed(outputs([-61, -60, -1, 0]), "interval") == [-61, -60, 0]
    assert passed(outputs([0.1, 0.3, 0.6]), "interval", 0.5) == [0.1, 0.6]


def test_a_change_of_class_alarm_or_trust_passes() -> None:
    """Each against the output before it; what is no number is a class of its own."""
    assert passed(outputs([1, 2, 3, 4, 5, 6], classes="aabb?a"), "change") == [1, 3, 5, 6]
    assert passed(outputs([1, 2, 3, 4], classes="aaaa", alarm=" !! "), "change") == [1, 2, 4]
    assert passed(outputs([1, 2, 3, 4], status="ww"), "change") == [1, 3]


def test_independent_classes_count_as_a_set() -> None:
    """Another set of likely classes is a change."""
    out = replace(
        outputs([1, 2, 3, 4], classes="aaaa"),
        spec=OutputSpec("m", labels=("a", "b"), exclusive=False),
        probabilities=np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.6], [0.1, 0.1]], np.float32),
    )
    assert passed(out, "change") == [1, 3, 4]


@pytest.mark.parametrize("mode", ["interval", "change"])
def test_a_reset_always_passes(mode: str) -> None:
    """But for those of the windowed regime, which come by themselves."""
    resets = f"0{ResetReason.GAP:d}{ResetReason.WINDOW:d}{ResetReason.COMMAND:d}0"
    assert passed(outputs([1, 2, 3, 4, 5], reset=resets), mode) == [1, 2, 4]


@given(prediction_batches(40), st.sampled_from(["interval", "change"]), st.lists(st.integers(0, 40), max_size=6))
def test_batches_do_not_matter(out: PredictionBatch, mode: str, places: list[int]) -> None:
    """Wherever a batch is cut the same rows pass, as they are and in order, and the others are counted."""
    out = replace(out, time_ns=np.sort(out.time_ns % (600 * NS_PER_S)))
    whole, cut = Kept(), Kept()
    Throttled(whole, mode).write(out)  # type: ignore[arg-type]
    parts = Throttled(cut, mode)  # type: ignore[arg-type]
    edges = [0, *sorted(min(place, len(out)) for place in places), len(out)]
    for a, b in pairwise(edges):
        parts.write(part(out, slice(a, b)))
    assert cut.rows == whole.rows
    assert parts.withheld == len(out) - len(whole.rows)
    assert {name for name, _ in whole.rows} == {out.streams[s] for s in out.stream}


def test_rows_are_taken_with_all_their_columns() -> None:
    """A part of a batch has every column of it, and counts nothing twice."""
    out = replace(outputs([1, 2, 3], classes="aba", alarm=" ! "), seq=np.arange(3), resets={ResetReason.GAP: 1})
    some = out.take(np.array([0, 2]))
    assert len(some) == 2
    assert some.time_ns.tolist() == [NS_PER_S, 3 * NS_PER_S]
    assert some.seq is not None
    assert some.seq.tolist() == [0, 2]
    assert some.probabilities is not None
    assert some.probabilities.shape == (2, 2)
    assert (some.forecast, some.dropped, some.resets) == (None, {}, {})


def test_everything_else_is_the_sink_s() -> None:
    """Opening, flushing, closing, health, and who is silent - where the sink wants to know."""
    sink = Telling()
    one = Throttled(sink, "change")
    one.open()
    assert one.flush() == 17
    one.close()
    assert one.health() == SinkHealth(queued=4)
    one.stream_status("p", False)
    assert sink.calls == ["open", "flush", "close", "p False"]
    assert getattr(Throttled(Kept(), "change"), "stream_status", None) is None


def test_the_configuration_puts_it_before_a_sink() -> None:
    """`throttle` of any sink table."""
    assert isinstance(build_sink(StdoutSinkConfig(throttle="change"), "stdout"), Throttled)
    assert not isinstance(build_sink(StdoutSinkConfig(), "stdout"), Throttled)
