"""Which samples become steps, what is imputed, and when a stream is reset."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
import pytest

from stream_gru.core.prediction import status_text
from stream_gru.core.types import DropReason, PredictionBatch, ResetReason, Status
from stream_gru.pipeline.pipeline import Pipeline
from tests.support.batches import CHANNELS, batch, rows_of
from tests.support.models import make_bundle
from tests.support.pipelines import calibrated, toy_pipeline


def process_times(
    times: list[float], pipeline: Pipeline | None = None, **columns: Any
) -> tuple[PredictionBatch, Pipeline]:
    """Process one stream's samples at these seconds."""
    pipeline = pipeline or toy_pipeline()
    return pipeline.process(batch(["a"] * len(times), times, **columns)), pipeline


def resets(out: PredictionBatch) -> list[str]:
    """Reset reason of each output, as text."""
    return [ResetReason(int(code)).text for code in out.reset]


def test_the_first_sample_resets_and_no_later_one() -> None:
    """The state of a stream starts with a counted reset and is carried from then on."""
    out, _ = process_times([0, 1, 2])
    assert resets(out) == ["first_sample", "none", "none"]
    assert out.steps_since_reset.tolist() == [1, 2, 3]
    assert out.resets == {ResetReason.FIRST_SAMPLE: 1}


def test_a_repeated_time_is_a_duplicate_and_an_older_one_is_late() -> None:
    """Samples that are not newer than the newest are dropped, each for its own reason."""
    out, _ = process_times([0, 1, 1, 2, 0.5, 3])
    assert len(out) == 4
    assert out.dropped == {DropReason.DUPLICATE: 1, DropReason.LATE: 1}


def test_a_short_gap_is_filled_and_reported() -> None:
    """Up to max_fill_steps missing steps are inserted with the last values; the sample after the gap reports them."""
    out, pipeline = process_times([0, 4])
    assert resets(out) == ["first_sample", "none"]
    assert out.steps_since_reset.tolist() == [1, 5]
    assert out.imputed.tolist() == [0, 3]
    filled = toy_pipeline()
    filled.process(batch(["a"] * 5, [0, 1, 2, 3, 4], [[0, 1, 2]] * 4 + [[1, 2, 3]]))
    assert np.array_equal(pipeline.table["h"][0], filled.table["h"][0])


def test_a_long_gap_resets() -> None:
    """More than max_fill_steps missing steps reset the stream."""
    out, _ = process_times([0, 1, 8])
    assert resets(out) == ["first_sample", "none", "gap"]
    assert out.imputed.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("seconds", "reason"), [(7, "none"), (7.4, "none"), (7.6, "gap")])
def test_the_limit_of_a_gap_is_counted_in_whole_periods(seconds: float, reason: str) -> None:
    """Five missing steps after second 1 end at second 7; half a period of jitter is allowed."""
    out, _ = process_times([0, 1, seconds])
    assert resets(out)[2] == reason


def test_a_clock_set_back_resets_and_continues() -> None:
    """A sample older by more than clock_backwards_s is applied after a reset; the order restarts there."""
    out, _ = process_times([10_000, 10_001, 5, 6, 6, 7])
    assert resets(out) == ["first_sample", "none", "clock_backwards", "none", "none"]
    assert out.dropped == {DropReason.DUPLICATE: 1}


def test_a_flag_in_the_data_resets() -> None:
    """The device's reset flag resets the stream, also when its clock restarted."""
    flags = np.array([False, False, True, False])
    out, _ = process_times([100, 101, 50, 51], reset=flags)
    assert resets(out) == ["first_sample", "none", "flag", "none"]


def test_a_new_episode_resets_at_its_boundary() -> None:
    """A change of the episode is a boundary; event times may restart there."""
    out, _ = process_times([0, 1, 0, 1], episode=np.array([7, 7, 8, 8]))
    assert resets(out) == ["first_sample", "none", "boundary", "none"]


def test_the_windowed_regime_resets_every_window() -> None:
    """A model trained on windows of W is reset every W steps, filled steps included."""
    pipeline = toy_pipeline(calibrated(make_bundle(channels=CHANNELS, labels=2), regime="windowed", window=3))
    out, _ = process_times([0, 1, 2, 3, 4, 6, 7], pipeline)
    assert out.steps_since_reset.tolist() == [1, 2, 3, 1, 2, 1, 2]
    assert resets(out) == ["first_sample", "none", "none", "window", "none", "window", "none"]


def test_a_window_reset_on_an_inserted_step_is_reported_at_the_next_sample() -> None:
    """Every reset is reported, even one at an inserted step."""
    pipeline = toy_pipeline(calibrated(make_bundle(channels=CHANNELS, labels=2), regime="windowed", window=3))
    out, _ = process_times([0, 1, 2, 5], pipeline)
    assert resets(out) == ["first_sample", "none", "none", "window"]
    assert out.resets == {ResetReason.FIRST_SAMPLE: 1, ResetReason.WINDOW: 1}
    assert out.steps_since_reset.tolist() == [1, 2, 3, 3]


def test_a_command_resets_before_the_next_sample() -> None:
    """Pipeline.reset takes effect at the stream's next sample, with its reason."""
    out, pipeline = process_times([0, 1])
    assert pipeline.reset("a") == 1
    out, _ = process_times([2, 3], pipeline)
    assert resets(out) == ["command", "none"]
    with pytest.raises(KeyError):
        pipeline.reset("unknown")


def test_a_non_finite_state_is_replaced_at_the_next_step() -> None:
    """An overflow gives one degraded output; the next step starts from the initial state and reports the reason."""
    wild = [[3e38, 3e38, 3e38], [1, 1, 1], [1, 1, 1]]
    out, pipeline = process_times([0, 1, 2], values=wild)
    assert [Status(int(code)).name for code in out.status] == ["DEGRADED", "WARMING", "WARMING"]
    assert resets(out) == ["first_sample", "non_finite_state", "none"]
    assert out.steps_since_reset.tolist() == [1, 1, 2]
    assert np.isfinite(pipeline.table["h"]).all()


def test_a_missing_value_is_imputed_and_marked() -> None:
    """A missing value is replaced by the last valid one."""
    out, pipeline = process_times([0, 1, 2], values=[[1, 2, 3], [4, nan, 6], [7, 8, 9]])
    assert out.imputed.tolist() == [0, 1, 0]
    held = toy_pipeline()
    held.process(batch(["a"] * 3, [0, 1, 2], [[1, 2, 3], [4, 2, 6], [7, 8, 9]]))
    assert np.array_equal(pipeline.table["h"][0], held.table["h"][0])


def test_a_value_is_imputed_for_a_limited_time() -> None:
    """After max_fill_steps invalid values in a row the sample is dropped, which leaves a gap."""
    values = [[1, 2, 3]] + [[1, nan, 3]] * 7 + [[1, 2, 3]]
    out, _ = process_times(list(range(9)), values=values)
    assert out.dropped == {DropReason.NON_FINITE: 2}
    assert len(out) == 7
    assert out.imputed.tolist() == [0, 1, 1, 1, 1, 1, 2]


def test_before_any_valid_value_a_sample_is_dropped() -> None:
    """At the start there is no value to repeat."""
    out, pipeline = process_times([0, 1], values=[[nan, 2, 3], [1, 2, 3]])
    assert out.dropped == {DropReason.NON_FINITE: 1}
    assert resets(out) == ["first_sample"]
    assert pipeline.streams == ("a",)


def test_values_from_before_a_long_gap_are_not_repeated() -> None:
    """A value is repeated for max_fill_steps, not across a gap that resets the stream."""
    out, _ = process_times([0, 1, 100, 101], values=[[1, 2, 3], [1, 2, 3], [1, nan, 3], [1, 2, 3]])
    assert out.dropped == {DropReason.NON_FINITE: 1}
    assert resets(out) == ["first_sample", "none", "gap"]


def test_values_out_of_range_count_as_missing() -> None:
    """A value out of range is imputed like a missing one, and drops the sample for its own reason."""
    bundle = calibrated(make_bundle(channels=CHANNELS, labels=2))
    first = bundle.manifest.channels[0]
    limited = type(first)(name="c0", seen_min=0, seen_max=1, min=0, max=10)
    pipeline = toy_pipeline(bundle.with_manifest(channels=[limited, *bundle.manifest.channels[1:]]))
    out, _ = process_times([0, 1, 2], pipeline, values=[[-1, 0, 0], [5, 0, 0], [11, 0, 0]])
    assert out.dropped == {DropReason.OUT_OF_RANGE: 1}
    assert out.imputed.tolist() == [0, 1]


def test_warm_up_is_marked_with_its_progress() -> None:
    """The first outputs after a reset have the status ``warming k/n``."""
    out, _ = process_times([0, 1, 2])
    texts = [
        status_text(Status(int(s)), int(k), out.spec.warm_up)
        for s, k in zip(out.status, out.steps_since_reset, strict=True)
    ]
    assert texts == ["warming 1/2", "warming 2/2", "ok"]


def test_calendar_inputs_follow_the_event_time_of_filled_steps() -> None:
    """Inserted steps have their own event times, so calendar inputs change within a gap."""
    bundle = calibrated(make_bundle(channels=CHANNELS, labels=2, calendar=1, period_s=3600.0))
    gap, whole = toy_pipeline(bundle), toy_pipeline(bundle)
    gap.process(batch(["a"] * 2, [0, 3 * 3600], [[1, 1, 1]] * 2))
    whole.process(batch(["a"] * 4, [0, 3600, 7200, 10800], [[1, 1, 1]] * 4))
    assert np.array_equal(gap.table["h"][0], whole.table["h"][0])


def test_another_model_resets_every_stream_and_keeps_its_order() -> None:
    """After a swap to another model the state is reset for that reason; order and last values are kept."""
    out, pipeline = process_times([0, 1, 2])
    other = calibrated(make_bundle(channels=CHANNELS, labels=2, seed=5))
    assert pipeline.swap(other, toy_pipeline(other).engine) == 1
    out, _ = process_times([1, 3, 4], pipeline, values=[[1, 1, 1], [1, nan, 1], [1, 1, 1]])
    assert out.spec.model_id == other.manifest.model_id
    assert resets(out) == ["model_changed", "none"]
    assert out.dropped == {DropReason.LATE: 1}
    assert out.imputed.tolist() == [1, 0]


def test_the_same_model_keeps_every_state() -> None:
    """A swap to a bundle of the same model changes no output."""
    _, pipeline = process_times([0, 1, 2])
    bundle = calibrated(make_bundle(channels=CHANNELS, labels=2, warm_up=2))
    assert pipeline.swap(bundle, pipeline.engine) == 0
    swapped, _ = process_times([3, 4], pipeline)
    _, whole = process_times([0, 1, 2])
    unswapped, _ = process_times([3, 4], whole)
    assert rows_of([swapped]) == rows_of([unswapped])


@pytest.mark.parametrize("options", [{}, {"interval_level": 0.5}, {"interval_adapt_rate": 0.0}, {"max_streams": 7}])
def test_the_same_model_copies_no_row(options: dict[str, float]) -> None:
    """A swap reuses the table itself, whichever options change: its time does not grow with the streams."""
    _, pipeline = process_times([0, 1, 2])
    table = pipeline.table
    bundle = calibrated(make_bundle(channels=CHANNELS, labels=2, warm_up=2))
    pipeline.swap(bundle, pipeline.engine, **options)  # type: ignore[arg-type]
    assert pipeline.table is table
    out, _ = process_times([3], pipeline)
    assert out.steps_since_reset.tolist() == [4]
    assert out.spec.level == options.get("interval_level", 0.9)


def test_a_model_of_other_channels_resets_every_stream() -> None:
    """After a swap to a model of other channels each stream is reset for that reason and keeps its order."""
    _, pipeline = process_times([0, 1])
    other = calibrated(make_bundle(channels=2, labels=2, seed=5))
    assert pipeline.swap(other, toy_pipeline(other).engine) == 1
    values = np.ones((3, 2), np.float32)
    out = pipeline.process(replace(batch(["a"] * 3, [0, 2, 3]), values=values))
    assert resets(out) == ["model_changed", "none"]
    assert out.dropped == {DropReason.LATE: 1}


def test_a_non_finite_state_does_not_hide_a_deferred_reset() -> None:
    """The reset of a dropped sample keeps its reason when the state is not finite as well, however batches are cut."""
    times = [10_000, 10_001, 0, 1]
    values = [[1.0, 1.0, 1.0], [3e38, 3e38, 3e38], [nan, nan, nan], [1.0, 1.0, 1.0]]
    for cuts in ([4], [2, 4], [3, 4], [1, 2, 3, 4]):
        pipeline, found, first = toy_pipeline(), [], 0
        for last in cuts:
            out = pipeline.process(batch(["a"] * (last - first), times[first:last], values[first:last]))
            found += resets(out)
            first = last
        assert found == ["first_sample", "none", "clock_backwards"], cuts


@pytest.mark.parametrize("stream", ["", "a\nb", "x" * 129, "a#b"])
def test_push_rejects_a_stream_id_that_a_decoder_would_reject(stream: str) -> None:
    """The Python API has the same rule as the decoders."""
    with pytest.raises(ValueError, match="stream: expected"):
        toy_pipeline().push(stream, 0.0, [1, 2, 3])


def test_a_level_out_of_range_is_rejected() -> None:
    """0, 1, more and NaN are rejected."""
    for level in (0.0, 1.0, 2.0, nan):
        with pytest.raises(ValueError, match="level: expected"):
            toy_pipeline(interval_level=level)
