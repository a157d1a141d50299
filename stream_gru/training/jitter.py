"""Jitter: in every epoch each run pretends to come from a sensor of another calibration and mounting.

A network that has seen a few devices learns their offsets by heart and fails on the next one.  Random gains and
offsets, drawn anew for each run and epoch, take that away from it; the same numbers hold for a run's truths.
Source: Um et al., "Data augmentation of wearable sensor data", ICMI 2017 (scaling).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stream_gru.training.runs import Rows, Scaling


def jittered(rows: Rows, scaling: Scaling, gain: float, offset: float, rng: np.random.Generator) -> Rows:
    """Return the rows with each run's channels scaled about their mean and shifted; calendar inputs stay.

    ``gain``: standard deviation of the factor around 1; ``offset``: of the shift, in the channel's own.
    """
    if not gain and not offset:
        return rows
    channels, runs = len(scaling.mean), len(rows.start)
    length = rows.stop - rows.start
    factor = 1 + gain * rng.standard_normal((runs, channels))
    shift = offset * scaling.scale * rng.standard_normal((runs, channels))
    x = rows.x.copy()
    centred = x[:, :channels] - scaling.mean
    x[:, :channels] = centred * np.repeat(factor, length, axis=0) + np.repeat(shift, length, axis=0) + scaling.mean
    return replace(rows, x=x)
