"""The sample rate check: streams whose period differs from that of the model's training data."""

from __future__ import annotations

import numpy as np
import pytest

from stream_gru.runtime.stream_checks import SampleRateCheck
from tests.support.batches import batch
from tests.support.pipelines import toy_pipeline


@pytest.mark.parametrize(("every_s", "reported"), [(1.0, False), (1.2, False), (0.2, True), (5.0, True)])
def test_a_device_with_another_rate_is_reported_once(every_s: float, reported: bool) -> None:
    """After twenty samples, in any batches, and never again."""
    pipeline, watch = toy_pipeline(), SampleRateCheck(1.0)
    found = []
    for part in np.array_split(np.arange(100) * every_s, 9):
        found += watch.observe(pipeline.process(batch(["p"] * len(part), part.tolist())))
    assert [stream for stream, _ in found] == (["p"] if reported else [])
    if reported:
        assert found[0][1] == pytest.approx(every_s)


def test_a_pause_is_not_another_rate() -> None:
    """The median counts, and each stream has its own."""
    pipeline, watch = toy_pipeline(), SampleRateCheck(1.0)
    times = [*range(10), *range(500, 520)]
    assert watch.observe(pipeline.process(batch(["p"] * 30, times))) == []
    fast = [index / 4 for index in range(30)]
    assert watch.observe(pipeline.process(batch(["q"] * 30, fast))) == [("q", 0.25)]


def test_at_most_max_streams_are_checked() -> None:
    """Streams with few samples count; the first streams are checked to the end."""
    pipeline, watch = toy_pipeline(max_streams=100), SampleRateCheck(1.0, max_streams=3)
    found = []
    for step in range(25):
        names = ["a", "b", *(f"{step}-{index}" for index in range(3))]
        found += watch.observe(pipeline.process(batch(names, [step / 5] * len(names))))
        assert len(watch._times) + len(watch._done) <= 3
    assert sorted(stream for stream, _ in found)[-2:] == ["a", "b"]
