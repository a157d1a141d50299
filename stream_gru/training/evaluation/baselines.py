"""Baselines: simple forecasts that a model should beat.

persistence        the last value, for every horizon
seasonal_naive     the value one season ago
linear_ar          a linear autoregression: ridge regression from the last lags of all quantities to every horizon

They read the same steps as the network: conditioned, with gaps filled.  Sizes: T steps, C channels, D targets, H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stream_gru.core.types import F32, F64, I64

_MAX_FEATURES = 512
_MAX_LAGS = 64
_BLOCK = 16_384


@dataclass(frozen=True)
class LinearAR:
    """Direct multi-step ridge regression of changes, in scaled units; ``weights`` (C * L + 1, D * H).

    ``channels`` (C,) the inputs it reads, with their ``mean, scale`` (C,); ``targets`` (D,) are positions among them.
    """

    channels: I64
    lags: int
    weights: F64
    mean: F64
    scale: F64
    targets: I64
    horizon: int

    def forecast(self, x: F32) -> F64:
        """Forecast one segment (T, I): (T, D, H) in engineering units, NaN for the first ``lags - 1`` steps."""
        scaled = (x[:, self.channels] - self.mean) / self.scale
        out = np.full((len(x), len(self.targets), self.horizon), np.nan)
        for first in range(self.lags - 1, len(x), _BLOCK):
            last = min(first + _BLOCK, len(x))
            change = _features(scaled, first, last, self.lags) @ self.weights
            change = change.reshape(last - first, len(self.targets), self.horizon)
            out[first:last] = scaled[first:last, self.targets, None] + change
        return out * self.scale[self.targets, None] + self.mean[self.targets, None]


def fit_linear_ar(
    segments: Sequence[F32], mean: F32, scale: F32, targets: Sequence[int], horizon: int, channels: Sequence[int]
) -> LinearAR | None:
    """Fit on segments (T, I) of the training part; None when there are too few rows.

    ``channels``: the inputs to read, all of them quantities, as the number of a category is none; ``targets`` are
    among them.  The ridge is 1e-3 of the mean feature variance, enough to solve for collinear lags.
    """
    read = np.array(channels)
    mean, scale = mean[read], scale[read]
    lags = max(1, min(_MAX_LAGS, _MAX_FEATURES // len(read)))
    size, outputs = len(read) * lags + 1, len(targets) * horizon
    gram, moment, rows = np.zeros((size, size)), np.zeros((size, outputs)), 0
    index = np.array([list(channels).index(target) for target in targets])
    for segment in segments:
        scaled = (segment[:, read].astype(np.float64) - mean) / scale
        for first in range(lags - 1, len(segment) - horizon, _BLOCK):
            last = min(first + _BLOCK, len(segment) - horizon)
            a = _features(scaled, first, last, lags)
            ahead = np.arange(first, last)[:, None] + np.arange(1, horizon + 1)
            y = scaled[ahead][:, :, index].transpose(0, 2, 1) - scaled[first:last, index, None]
            gram += a.T @ a
            moment += a.T @ y.reshape(last - first, outputs)
            rows += last - first
    if rows < 2 * size:
        return None
    ridge = 1e-3 * np.trace(gram) / size
    weights = np.linalg.solve(gram + ridge * np.eye(size), moment)
    return LinearAR(read, lags, weights, mean.astype(np.float64), scale.astype(np.float64), index, horizon)


def _features(scaled: F64, first: int, last: int, lags: int) -> F64:
    """(last - first, C * lags + 1): the last ``lags`` steps up to each step, newest first, and a constant."""
    steps = np.arange(first, last)[:, None] - np.arange(lags)
    table = scaled[steps].reshape(last - first, -1)
    return np.concatenate((table, np.ones((len(table), 1))), axis=1)


def seasonal_forecast(y: F32, season: int, horizon: int) -> F64:
    """Return (T, D, H): the value one season (or several, for long horizons) before each truth; NaN where unknown."""
    out = np.full((len(y), y.shape[1], horizon), np.nan)
    for h in range(1, horizon + 1):
        back = season * -(-h // season) - h  # steps before now
        out[back:, :, h - 1] = y[: max(0, len(y) - back)]
    return out


def find_season(segments: Sequence[F32], period_s: float) -> int | None:
    """The season, in steps, whose naive forecast has the least scaled error on ``segments`` (T, D); None if none helps.

    Candidates: hour, day and week of the period, and the first strong peak of the autocorrelation.
    """
    longest = max((len(segment) for segment in segments), default=0)
    candidates = {round(seconds / period_s) for seconds in (3600, 86_400, 604_800)}
    candidates |= {peak for segment in segments if len(segment) == longest for peak in _autocorrelation_peaks(segment)}
    usable = sorted(m for m in candidates if 2 <= m <= longest // 3)
    errors = {m: _season_error(segments, m) for m in usable}
    return min(errors, key=errors.__getitem__) if errors else None


def _season_error(segments: Sequence[F32], season: int) -> float:
    spread = np.concatenate(segments).std(axis=0) + 1e-12
    differences = [
        np.abs(segment[season:] - segment[:-season]) / spread for segment in segments if len(segment) > season
    ]
    return float(np.concatenate(differences).mean())


def _autocorrelation_peaks(y: F32, limit: int = 8192) -> list[int]:
    """The highest peak of the mean autocorrelation after its first trough."""
    y = y[:limit].astype(np.float64)
    y = (y - y.mean(axis=0)) / (y.std(axis=0) + 1e-12)
    spectrum = np.abs(np.fft.rfft(y, 2 * len(y), axis=0)) ** 2
    correlation = np.fft.irfft(spectrum, axis=0)[: len(y) // 3].mean(axis=1)
    falling = np.flatnonzero(np.diff(correlation) > 0)
    if not falling.size or falling[0] + 2 >= len(correlation):
        return []
    first = int(falling[0]) + 1
    return [first + int(correlation[first:].argmax())]
