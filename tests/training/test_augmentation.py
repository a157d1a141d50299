"""Augmentation changes the calibration of a segment and adds noise to inputs, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace

from stream_gru.config.model_schema import ForecastConfig, LayerConfig, ModelConfig
from stream_gru.config.train_schema import ChannelConfig, TrainingConfig
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.augmentation import Augmentation
from stream_gru.training.batches import Batch, cut_batches, window_plan
from stream_gru.training.splits import Scaling, Segment, SegmentTable, join_segments

SCALING = Scaling(np.array([10.0, -2.0, 0.0], np.float32), np.array([2.0, 0.5, 1.0], np.float32))
SPEC = NetworkSpec.from_config(
    ModelConfig(
        layer=[LayerConfig()], calendar=["hour_of_day"], forecast=ForecastConfig(targets=["second", "first"], horizon=5)
    ),
    [ChannelConfig(name="first"), ChannelConfig(name="second"), ChannelConfig(name="kind", categories=4)],
    [],
)
CALIBRATION = TrainingConfig(augment_gain=0.2, augment_offset=0.5)
NOISE = TrainingConfig(augment_noise=0.1)


def segment_table() -> SegmentTable:
    """Two segments of two quantities, a category and two calendar inputs."""
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 4, (2, 50, 1))
    return join_segments(
        [
            Segment(
                stream=name,
                time_ns=np.arange(50, dtype=np.int64),
                x=np.concatenate((rng.normal(size=(50, 2)), kind, rng.random((50, 2))), axis=1).astype(np.float32),
                observed=np.ones((50, 3), np.bool_),
                label=np.zeros(50, np.int32),
            )
            for name, kind in zip("ab", kinds, strict=True)
        ]
    )


def presented(training: TrainingConfig, epoch: int = 0, number: int = 0) -> tuple[Batch, Batch]:
    """The batch of both segments, each a window of its own: without and with augmentation."""
    plain = segment_table()
    plan = window_plan(plain, 45, 50, 2, "every", 0, None)
    (batch,) = cut_batches(plain, plan, SPEC.target_index, 5)
    return batch, Augmentation.draw(plain, SCALING, training, SPEC, epoch)(batch, plan.first[0], number)


def test_each_segment_has_one_gain_and_one_offset() -> None:
    """Within a segment a channel has one factor and one offset, truths included; another segment has others."""
    plain, changed = presented(CALIBRATION)
    laws = set()
    for segment in range(2):
        slope, offset = np.polyfit(plain.x[segment, :, 0], changed.x[segment, :, 0], 1)
        assert np.allclose(changed.x[segment, :, 0], slope * plain.x[segment, :, 0] + offset, atol=1e-4)
        assert np.allclose(changed.ahead[segment, :, 1], slope * plain.ahead[segment, :, 1] + offset, atol=1e-4)
        assert np.array_equal(changed.ahead[segment, :45, 0], changed.x[segment, :, 1])
        laws.add(round(float(slope), 4))
    assert len(laws) == 2


@pytest.mark.parametrize("training", [CALIBRATION, NOISE])
def test_categories_and_calendar_stay(training: TrainingConfig) -> None:
    """No augmentation changes a category or a calendar input; quantities change."""
    plain, changed = presented(training)
    assert np.array_equal(changed.x[:, :, 2:], plain.x[:, :, 2:])
    assert (changed.x[:, :, :2] != plain.x[:, :, :2]).mean() > 0.99


def test_noise_is_never_in_a_truth() -> None:
    """Forecast truths stay as measured, and so does the recording."""
    before = segment_table().x
    plain, changed = presented(NOISE)
    assert np.array_equal(changed.ahead, plain.ahead)
    assert np.array_equal(plain.x[0], before[:45])


def test_without_augmentation_nothing_is_copied() -> None:
    """By default a batch is returned unchanged."""
    plain, same = presented(TrainingConfig())
    assert same is plain


def test_augmentation_has_the_configured_spread() -> None:
    """Offset and noise have the configured standard deviation, in standard deviations of the channel."""
    only_offset = replace(CALIBRATION, augment_gain=0.0)
    offsets = [
        float(changed.x[0, 0, 0] - plain.x[0, 0, 0])
        for plain, changed in (presented(only_offset, i) for i in range(400))
    ]
    assert abs(np.std(offsets) / (0.5 * 2.0) - 1) < 0.15
    noise = np.concatenate([changed.x - plain.x for plain, changed in (presented(NOISE, 0, i) for i in range(20))])
    assert np.allclose(noise[:, :, :2].std(axis=(0, 1)), 0.1 * SCALING.scale[:2], rtol=0.1)


def test_noise_depends_on_seed_epoch_and_batch() -> None:
    """The same batch of the same epoch repeats its noise; another batch, epoch or seed has other noise."""
    first = presented(NOISE, 3, 7)[1].x
    assert np.array_equal(first, presented(NOISE, 3, 7)[1].x)
    for other in (presented(NOISE, 3, 8), presented(NOISE, 4, 7), presented(replace(NOISE, seed=2), 3, 7)):
        assert not np.isclose(first[:, :, :2], other[1].x[:, :, :2]).any(axis=2).all()


def test_neighbouring_channels_shift_together() -> None:
    """A segment shifts as a whole, by at most the configured number of channels; edge values are repeated."""
    spec = NetworkSpec.from_config(
        ModelConfig(layer=[LayerConfig()]), [ChannelConfig(name=name) for name in "abcdef"], ["no", "yes"]
    )
    x = np.tile(np.arange(6, dtype=np.float32), (40, 1))
    segments = [Segment("s", np.arange(40), x, np.ones((40, 6), np.bool_), np.zeros(40, np.int32)) for _ in range(60)]
    joined, scaling = join_segments(segments), Scaling(np.zeros(6, np.float32), np.ones(6, np.float32))
    plan = window_plan(joined, 40, 40, 60, "last", 0, None)
    (batch,) = cut_batches(joined, plan, (), 0)
    moved = Augmentation.draw(joined, scaling, TrainingConfig(augment_channel_shift=2), spec, 0)(
        batch, plan.first[0], 0
    ).x
    expected = {tuple(np.clip(np.arange(6) + by, 0, 5).tolist()) for by in range(-2, 3)}
    assert {tuple(segment[0].tolist()) for segment in moved} == expected
    assert (moved == moved[:, :1]).all()
