"""Jitter: in every pass each run pretends to come from a sensor of another calibration, mounting and noise.

A network that has seen a few devices learns their offsets by heart and fails on the next one.  Random gains and
offsets, drawn anew for each run and pass, take that away from it.  They stand for another device in the same process,
whose future is read by the same sensor: the same numbers hold for a run's truths.  Noise is no part of the process and
cannot be forecast: it is added to what the network reads and never to a truth.  Categories and calendar inputs are no
measurements and stay as they are.  A row of equal sensors side by side may see the same thing a place further on.

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
from stream_gru.training.segments import Batch, Rows, Scaling


@dataclass(frozen=True)
class Jitter:
    """What one pass does to its batches; C channels, R runs.

    ``factor, shift``  (R, C) float32: value -> (value - mean) * factor + mean + shift; None where nothing moves
    ``mean``           (C,) float32 of each channel
    ``noise``          (C,) float32, standard deviation in engineering units; None without noise
    ``places``         (R, C) int64, which channel each one is read from; None where none is moved
    ``stop``           (R,) where each run stops, by which a row's run is found
    ``seed``           of the noise of this pass; each batch has its own numbers
    """

    factor: F32 | None
    shift: F32 | None
    mean: F32
    noise: F32 | None
    places: I64 | None
    stop: I64
    targets: tuple[int, ...]
    seed: tuple[int, ...]

    @classmethod
    def draw(cls, rows: Rows, scaling: Scaling, training: TrainingConfig, spec: NetworkSpec, epoch: int) -> Self:
        """Draw the numbers of a pass, from the seed and its number alone."""
        rng = np.random.default_rng([training.seed, epoch, 1])
        shape = len(rows.start), spec.channels
        measured = np.isin(np.arange(spec.channels), spec.numeric_index)
        factor = shift = noise = places = None
        if training.augment_gain or training.augment_offset:
            factor = np.where(measured, 1 + training.augment_gain * rng.standard_normal(shape), 1).astype(np.float32)
            spread = np.where(measured, training.augment_offset * scaling.scale, 0)
            shift = (spread * rng.standard_normal(shape)).astype(np.float32)
        if training.augment_noise:
            noise = np.where(measured, training.augment_noise * scaling.scale, 0).astype(np.float32)
        if training.augment_channel_shift:
            most = training.augment_channel_shift
            moved = np.random.default_rng([training.seed, epoch, 3]).integers(-most, most + 1, (shape[0], 1))
            places = np.clip(np.arange(spec.channels) + moved, 0, spec.channels - 1)
        seed = training.seed, epoch, 2
        return cls(factor, shift, scaling.mean, noise, places, rows.stop, spec.target_index, seed)

    def __call__(self, batch: Batch, first: I64, number: int) -> Batch:
        """Return batch ``number`` of this pass as the pass shows it; ``first`` (B,) are the rows it begins at."""
        channels = len(self.mean)
        if self.factor is not None and self.shift is not None:
            run = np.searchsorted(self.stop, first, side="right")
            factor, shift = self.factor[run][:, None], self.shift[run][:, None]
            x, targets = batch.x.copy(), list(self.targets)
            x[:, :, :channels] = _moved(x[:, :, :channels], self.mean, factor, shift)
            ahead = _moved(batch.ahead, self.mean[targets], factor[:, :, targets], shift[:, :, targets])
            batch = replace(batch, x=x, ahead=ahead)
        if self.places is not None:
            run = np.searchsorted(self.stop, first, side="right")
            x = batch.x.copy()
            x[:, :, :channels] = np.take_along_axis(batch.x, self.places[run][:, None], axis=2)
            batch = replace(batch, x=x)
        if self.noise is not None:
            rng = np.random.default_rng([*self.seed, number])
            x = batch.x.copy()
            x[:, :, :channels] += self.noise * rng.standard_normal((*x.shape[:2], channels), np.float32)
            batch = replace(batch, x=x)
        return batch


def _moved(values: F32, mean: F32, factor: F32, shift: F32) -> F32:
    return (values - mean) * factor + (mean + shift)
