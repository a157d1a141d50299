from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream_gru.core.types import DropReason, Rejected, SampleBatch
from stream_gru.runtime.pieces import ReplayPacer
from tests.support.batches import batch


class SteppedTime:
    """A clock that only `wait` moves; ``stop_at``: the time at which `wait` returns True."""

    def __init__(self, stop_at: float = float("inf")) -> None:
        self.now, self.stop_at = 1000.0, stop_at
        self.waits: list[float] = []

    def clock(self) -> float:
        """Seconds."""
        return self.now

    def wait(self, seconds: float) -> bool:
        """Let time pass."""
        self.waits.append(seconds)
        self.now += seconds
        return self.now >= self.stop_at


def timed_samples(times_s: Sequence[float]) -> SampleBatch:
    """Return samples of one stream at these seconds."""
    return batch(["p"] * len(times_s), times_s)


def played(pacer: ReplayPacer, time: SteppedTime, given_batch: SampleBatch) -> list[tuple[float, int]]:
    """Return when each sample was yielded (seconds since the start), and its row's first value."""
    return [
        (time.now - 1000.0, int(value)) for part in pacer.parts(given_batch) for value in part.values[:, 0].tolist()
    ]


def test_samples_are_yielded_at_the_recorded_speed() -> None:
    """At speed 1 a second of the recording is a second of the clock, within one tick."""
    time = SteppedTime()
    for seen, (at, row) in enumerate(
        played(ReplayPacer(1, time.clock, time.wait), time, timed_samples([0, 1, 2.5, 4]))
    ):
        assert row == seen
        assert -1e-6 < at - [0, 1, 2.5, 4][row] < 0.051
    assert max(time.waits) <= 0.05


def test_speed_is_a_multiple() -> None:
    """At speed 100 a hundred seconds of the recording take one."""
    time = SteppedTime()
    rows = played(ReplayPacer(100, time.clock, time.wait), time, timed_samples(list(range(301))))
    assert [row for _, row in rows] == list(range(301))
    assert 3.0 <= rows[-1][0] < 3.06


def test_long_pauses_are_skipped_and_short_ones_kept() -> None:
    """A pause of an hour is skipped, one of four seconds is not."""
    time = SteppedTime()
    rows = played(ReplayPacer(1, time.clock, time.wait), time, timed_samples([0, 4, 3604, 3605]))
    assert np.allclose([at for at, _ in rows], [0, 4, 4, 5], atol=0.06)


def test_the_next_recording_starts_at_once() -> None:
    """A batch that starts more than a minute before the end of the last one is another recording."""
    time = SteppedTime()
    pacer = ReplayPacer(1, time.clock, time.wait)
    played(pacer, time, timed_samples([500, 501]))
    before = time.now - 1000.0
    rows = played(pacer, time, timed_samples([0, 1, 2]))
    assert np.allclose([at - before for at, _ in rows], [0, 1, 2], atol=0.06)


def test_batches_continue_where_the_last_one_ended() -> None:
    """The cut of a recording into batches changes nothing, also with a late sample at the cut."""
    time = SteppedTime()
    pacer = ReplayPacer(1, time.clock, time.wait)
    rows = [*played(pacer, time, timed_samples([0, 1])), *played(pacer, time, timed_samples([0.5, 2, 3]))]
    assert np.allclose([at for at, _ in rows], [0, 1, 1, 2, 3], atol=0.06)


def test_a_stop_skips_the_rest() -> None:
    """When it is requested during a wait, nothing more is yielded."""
    time = SteppedTime(stop_at=1002.5)
    rows = played(ReplayPacer(1, time.clock, time.wait), time, timed_samples(list(range(100))))
    assert [row for _, row in rows] == [0, 1, 2]


def test_an_empty_batch_passes_with_its_rejects() -> None:
    """A batch of rejects only is yielded at once."""
    time = SteppedTime()
    empty = timed_samples([0]).take(slice(0, 0))
    assert [part.received for part in ReplayPacer(1, time.clock, time.wait).parts(empty)] == [0]
    assert time.waits == []


@given(
    st.lists(st.integers(-300, 300), min_size=1, max_size=30),
    st.sampled_from([0.5, 1.0, 400.0, 1e300]),
    st.integers(0, 3),
)
def test_every_sample_is_yielded_once_in_order(steps: list[int], speed: float, rejects: int) -> None:
    """With any clock of the device, rows come once, in order, and rejects are counted once."""
    time = SteppedTime()
    whole = timed_samples(np.cumsum(steps).tolist())
    rejected = (Rejected(DropReason.PARSE, rejects),) if rejects else ()
    whole = SampleBatch(whole.stream_names, whole.stream_index, whole.time_ns, whole.values, rejected=rejected)
    parts = list(ReplayPacer(speed, time.clock, time.wait).parts(whole))
    assert np.concatenate([part.values for part in parts]).tolist() == whole.values.tolist()
    assert sum(part.received for part in parts) == whole.received
