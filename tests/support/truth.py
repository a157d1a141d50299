"""The truths of forecasts written out for one run: what the batches of training are held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stream_gru.core.types import F32, Mask
from stream_gru.training.segments import Run


def forecast_truth(run: Run, target_index: Sequence[int], horizon: int) -> tuple[F32, Mask]:
    """Return what came: y (T, D, H) with y[t, d, h-1] = x[t+h, target d], and where it counts, same shape.

    It does not count beyond the end of the run (y is 0 there) nor where the value was filled in.
    """
    beyond = np.zeros((horizon, len(target_index)))
    values = np.concatenate([run.x[:, target_index], beyond.astype(np.float32)])
    seen = np.concatenate([run.observed[:, target_index], beyond.astype(np.bool_)])
    view = np.lib.stride_tricks.sliding_window_view
    return view(values, horizon, axis=0)[1:], view(seen, horizon, axis=0)[1:]
