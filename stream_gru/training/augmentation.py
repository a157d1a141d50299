"""Augmentation: in every epoch each segment looks like a recording of a sensor with other calibration and noise.

A network that has seen a few devices learns their offsets and fails on the next one.  Random gains and offsets, drawn
again for each segment and epoch, prevent that.  They stand for another device in the same process, so the same numbers
apply to the segment's forecast truths.  Noise is not part of the process and cannot be forecast: it is added to the
inputs, never to a truth.  Categories and calendar inputs are not measurements and stay unchanged.  With neighbouring
channels, as of a line camera, a segment may also be shifted by some channels.

Source: Um et al., "Data augmentation of wearable sensor data", ICMI 2017 (scaling, jittering); Bishop, "Training with
noise is equivalent to Tikhonov regularization", Neural Computation 7:108, 1995.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from stream_gru.config.train_schema import TrainingConfig
from stream_gru.core.types import F32, I64
from stream_gru.model.keras.spec import NetworkSpec
from stream_gru.training.batches import Batch
from stream_gru.training.splits import Scaling, SegmentTable


@dataclass(frozen=True)
class Augmentation:
    """How one epoch changes its batches; C channels, S segments.

    ``factor, offset``  (S, C) float32: value -> (value - mean) * factor + mean + offset; None without either
    ``mean``            (C,) float32 of each channel
    ``noise``           (C,) float32, standard deviation in engineering units; None without noise
    ``source_channel``  (S, C) int64, the channel that each one is read from; None without a shift
    ``stop``            (S,) where each segment stops, by which a row's segment is found
    ``seed``            of the noise of this epoch; each batch draws from a generator of its own
    """

    factor: F32 | None
    offset: F32 | None
    mean: F32
    noise: F32 | None
    source_channel: I64 | None
    stop: I64
    targets: tuple[int, ...]
    seed: tuple[int, ...]

    @classmethod
    def draw(
        cls, table: SegmentTable, scaling: Scaling, training: TrainingConfig, spec: NetworkSpec, epoch: int
    ) -> Self:
        """Draw the numbers of an epoch, from the seed and the epoch alone."""
        rng = np.random.default_rng([training.seed, epoch, 1])
        shape = len(table.start), spec.channels
        measured = np.isin(np.arange(spec.channels), spec.numeric_index)
        factor = offset = noise = source_channel = None
        if training.augment_gain or training.augment_offset:
            factor = np.where(measured, 1 + training.augment_gain * rng.standard_normal(shape), 1).astype(np.float32)
            spread = np.where(measured, training.augment_offset * scaling.scale, 0)
            offset = (spread * rng.standard_normal(shape)).astype(np.float32)
        if training.augment_noise:
            noise = np.where(measured, training.augment_noise * scaling.scale, 0).astype(np.float32)
        if training.augment_channel_shift:
            most = training.augment_channel_shift
            shift = np.random.default_rng([training.seed, epoch, 3]).integers(-most, most + 1, (shape[0], 1))
            source_channel = np.clip(np.arange(spec.channels) + shift, 0, spec.channels - 1)
        seed = training.seed, epoch, 2
        return cls(factor, offset, scaling.mean, noise, source_channel, table.stop, spec.target_index, seed)

    def __call__(self, batch: Batch, first: I64, number: int) -> Batch:
        """Return batch ``number`` of this epoch, augmented; ``first`` (B,) are the table rows it begins at."""
        channels = len(self.mean)
        if self.factor is not None and self.offset is not None:
            segment = np.searchsorted(self.stop, first, side="right")
            factor, offset = self.factor[segment][:, None], self.offset[segment][:, None]
            x, targets = batch.x.copy(), list(self.targets)
            x[:, :, :channels] = _recalibrated(x[:, :, :channels], self.mean, factor, offset)
            ahead = _recalibrated(batch.ahead, self.mean[targets], factor[:, :, targets], offset[:, :, targets])
            batch = replace(batch, x=x, ahead=ahead)
        if self.source_channel is not None:
            segment = np.searchsorted(self.stop, first, side="right")
            x = batch.x.copy()
            x[:, :, :channels] = np.take_along_axis(batch.x, self.source_channel[segment][:, None], axis=2)
            batch = replace(batch, x=x)
        if self.noise is not None:
            rng = np.random.default_rng([*self.seed, number])
            x = batch.x.copy()
            x[:, :, :channels] += self.noise * rng.standard_normal((*x.shape[:2], channels), np.float32)
            batch = replace(batch, x=x)
        return batch


def _recalibrated(values: F32, mean: F32, factor: F32, offset: F32) -> F32:
    return (values - mean) * factor + (mean + offset)
