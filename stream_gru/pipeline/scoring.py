"""Scoring: compare forecasts with their truth when it arrives, and adapt the intervals.

Every step issues forecasts for 1..H steps ahead.  When a truth arrives, three sums are updated for each stream, target
and horizon: the absolute error, the absolute error of persistence (the last value as forecast, the usual baseline) and
whether the interval covered the truth.

Intervals are split-conformal: the quantiles of the validation residuals, from the bundle, around the forecast.  Because
sensors drift, a scale for each stream, target and horizon is adapted online, so that the share of misses approaches
1 - level:

    scale <- scale * (1 + rate * (misses / truths - (1 - level)))      once every `block` steps

Source: Gibbs and Candès, "Adaptive conformal inference under distribution shift", NeurIPS 2021, with the multiplicative
link of Angelopoulos, Candès and Tibshirani, "Conformal PID control for time series prediction", NeurIPS 2023.

Decision: the scale is updated at the end of a block of steps, counted per stream.  The result then does not depend on
how samples are cut into batches, and a recording is scored in a few operations per block instead of per step.

Decision: errors are summed as integer multiples of 2**-20 of the target's scale.  The sums are then equal to the last
bit in any order of addition.  An error beyond 1024 scales counts as 1024 scales.

Not scored: forecasts issued during warm-up, at inserted steps or with a non-finite state; truths that were imputed;
forecasts issued before a reset (except the resets of the windowed regime, where time continues).

A run of misses counts consecutive truths outside the interval forecast one step ahead.  A truth inside the interval or
a reset ends it; truths that are not scored leave it unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_gru.core.types import F32, F64, I32, I64, Mask, ResetReason
from stream_gru.model.manifest import Calibration, Forecast, Manifest
from stream_gru.pipeline.conditioning.gap_filling import Steps
from stream_gru.pipeline.state_table import Column, StateTable

_MIN_HALF_WIDTH = np.float32(0.01)  # of an interval, in scales of the target
_MAX_ERROR = 2.0**30  # in units of 2**-20 of the target's scale
_SUMS = 4  # truths, absolute error, absolute error of persistence, covered


@dataclass(frozen=True, slots=True)
class ScoreTotals:
    """Sums over scored forecasts, each (D, H) float64; errors in the unit of the channel.

    ``truths``  number of scored forecasts      ``covered``  truths inside their interval, NaN without intervals
    """

    truths: F64
    absolute_error: F64
    persistence_error: F64
    covered: F64

    def mae(self) -> F64:
        """Mean absolute error, (D, H); NaN where nothing was scored."""
        return _ratio(self.absolute_error, self.truths)

    def skill(self) -> F64:
        """1 - MAE / MAE of persistence, (D, H): 1 is perfect, 0 equals the last value as forecast, below 0 is worse."""
        return 1 - _ratio(self.absolute_error, self.persistence_error)

    def coverage(self) -> F64:
        """Share of truths inside their interval, (D, H)."""
        return _ratio(self.covered, self.truths)

    def minus(self, earlier: ScoreTotals) -> ScoreTotals:
        """The sums since ``earlier``."""
        return ScoreTotals(
            self.truths - earlier.truths,
            self.absolute_error - earlier.absolute_error,
            self.persistence_error - earlier.persistence_error,
            self.covered - earlier.covered,
        )


def _ratio(a: F64, b: F64) -> F64:
    return np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)


class Scorer:
    """Scores the forecasts of one model; the state of each stream is in the state table.

    The scorer itself holds the sums over all streams, evicted ones included.
    ``scale``: (C,) scale of each channel; ``level``: nominal coverage; ``rate``: step size of the adaptation (0: fixed
    intervals).  D targets, H horizons; P = 1, or 3 with a quantile head (median, lower, upper).
    """

    def __init__(self, manifest: Manifest, scale: F32, level: float, rate: float) -> None:
        head = manifest.forecast
        if head is None:
            raise ValueError("manifest.forecast: expected a forecast head to score, got None")
        self._targets = np.array(manifest.target_index)
        self._shape = (len(head.targets), head.horizon)
        self._quantiles = _interval_quantiles(head)
        # Quantiles may be equal, cross or lie on one side; an interval of width 0 could not be widened by scaling.
        self._min_half_width = (_MIN_HALF_WIDTH * scale[self._targets])[:, None]
        self._block = max(32, head.horizon)
        self._miss_share, self._rate = 1 - level, rate
        self.calibrated = manifest.calibration is not None
        least = np.full_like(self._min_half_width, _MIN_HALF_WIDTH) if self._quantiles else self._min_half_width
        low, high = interval_offsets(manifest.calibration, level, self._shape)
        self._offsets = np.minimum(low, -least), np.maximum(high, least)
        # A power of two, so that dividing by it is exact.
        self._unit = np.exp2(np.floor(np.log2(scale[self._targets].astype(np.float64))) - 20)[:, None]
        self._sums = np.zeros((_SUMS, *self._shape), np.float64)
        h = np.arange(head.horizon)
        # (H, 1, 1, H): which truths of the last H forecasts, oldest first, are known after the last step.
        self._known = (h < (head.horizon - 1 - h)[:, None])[:, None, None, :]

    def columns(self) -> list[Column]:
        """Columns of the state table that scoring reads and writes."""
        d, h = self._shape
        parts = 1 if self._quantiles is None else 3
        return [
            # Of the last H steps, step n at n % H; NaN where the truth is known.
            Column("pending_forecasts", (h, parts, d, h), np.float32, np.nan),
            Column("recent_values", (h, d), np.float32, np.nan),
            Column("scored_steps", (), np.int64, 0),
            Column("interval_scale", (2, d, h), np.float32, 1),  # of this block and the one before
            Column("block_truths", (d, h), np.int32, 0),
            Column("block_misses", (d, h), np.int32, 0),
            Column("score_sums", (_SUMS, d, h), np.float64, 0),
            Column("consecutive_misses", (d,), np.int32, 0),
        ]

    def totals(self, table: StateTable, stream: str | None = None) -> ScoreTotals:
        """Return the sums of one stream since its first sample, or of all streams since this scorer was made.

        Raises KeyError for an unknown stream.
        """
        total = self._sums if stream is None else table["score_sums"][table.slot(stream)]
        covered = total[3] if self.calibrated else np.full_like(total[3], np.nan)
        return ScoreTotals(total[0].copy(), total[1] * self._unit, total[2] * self._unit, covered.copy())

    def adopt_totals(self, earlier: Scorer) -> None:
        """Continue the sums of another scorer of the same model."""
        self._sums = earlier._sums.copy()

    def score(self, steps: Steps, outputs: F32, scorable: Mask, table: StateTable) -> tuple[F32, F32, F32, I32]:
        """Score past forecasts, adapt; return forecast, lower, upper, (T, D, H) float32 each, and misses (T,) int32.

        ``outputs``: (T, K) of the engine; ``scorable``: (T,) whether the forecast of a step is to be scored; misses:
        length of the longest run of misses of any target at each step.
        """
        d, h = self._shape
        count = 1 if self._quantiles is None else self._quantiles[3]
        heads = outputs[:, : d * h * count].reshape(len(outputs), d, h, count)
        parts = self._parts(heads)
        scale, misses = np.ones((0, d, h), np.float32), np.zeros(0, np.int32)
        if len(steps):
            scale, misses = self._learn(steps, parts, scorable, table)
        forecast = np.ascontiguousarray(parts[:, 0])
        low, high = self._widths(parts)
        return forecast, forecast + scale * low, forecast + scale * high, misses

    def _parts(self, heads: F32) -> F32:
        """Median and outermost quantiles: (T, D, H, Q) -> (T, P, D, H)."""
        if self._quantiles is None:
            return heads[:, None, :, :, 0]
        lower, median, upper, _ = self._quantiles
        return np.stack([heads[..., median], heads[..., lower], heads[..., upper]], axis=1)

    def _widths(self, parts: F32) -> tuple[F32, F32]:
        """Lower and upper end of the interval relative to the forecast, before scaling; (D, H) or (T, D, H) each."""
        low, high = self._offsets
        if self._quantiles is None:
            return low, high
        median, lower, upper = parts[..., 0, :, :], parts[..., 1, :, :], parts[..., 2, :, :]
        return low * np.maximum(median - lower, self._min_half_width), high * np.maximum(
            upper - median, self._min_half_width
        )

    def _learn(self, steps: Steps, parts: F32, scorable: Mask, table: StateTable) -> tuple[F32, I32]:
        """Match forecasts with truths, update sums and scales; return each step's scale (T, D, H) and misses (T,)."""
        d, h = self._shape
        groups, total = len(steps.slot), len(steps)
        length = steps.length + h  # the steps of every stream, preceded by its last H steps
        start = np.cumsum(length) - length
        here = start[steps.group] + h + np.arange(total) - steps.start[steps.group]
        ring = (start[:, None] + np.arange(h)).ravel()
        horizons = np.arange(h)
        slot, number = steps.slot[:, None], table["scored_steps"][steps.slot][:, None] + horizons
        issued = np.empty((int(length.sum()), *parts.shape[1:]), np.float32)
        values = np.empty((len(issued), d), np.float32)
        issued[ring] = table["pending_forecasts"][slot, number % h].reshape(groups * h, *parts.shape[1:])
        values[ring] = table["recent_values"][slot, number % h].reshape(groups * h, d)
        issued[here] = np.where(scorable[:, None, None, None], parts, np.float32(np.nan))
        now = steps.x[:, self._targets]
        values[here] = now
        truth = np.where(steps.observed[:, self._targets], now, np.float32(np.nan))
        back = here[:, None] - 1 - horizons  # (T, H): where the forecast for now was issued
        matched = issued[back, :, :, horizons]  # (T, H, P, D)
        last = start[:, None] + length[:, None] - h + np.arange(h)
        breaks = (steps.reset > 0) & (steps.reset != ResetReason.WINDOW)
        if breaks.any():
            stretch = np.zeros(len(issued), np.int64)
            stretch[here] = np.cumsum(breaks)
            stretch[ring] = np.repeat(stretch[here[steps.start]] - breaks[steps.start], h)
            matched[stretch[back] != stretch[here][:, None]] = np.nan
            issued[last[stretch[last] != stretch[last[:, -1:]]]] = np.nan
        error = truth[:, None, :] - matched[:, :, 0]
        persistence = np.abs(truth[:, None, :] - values[back])
        error, persistence = error.transpose(0, 2, 1), persistence.transpose(0, 2, 1)
        scale, missed = self._adapt(steps, error, self._widths(matched.transpose(0, 2, 3, 1)), table)
        self._add_up(steps, error, persistence, missed, table)
        place = (number + steps.length[:, None]) % h
        table["pending_forecasts"][slot, place] = np.where(self._known, np.float32(np.nan), issued[last])
        table["recent_values"][slot, place] = values[last]
        return scale, _miss_runs(steps, missed[:, :, 0], np.isfinite(error[:, :, 0]), breaks, table)

    def _adapt(self, steps: Steps, error: F32, widths: tuple[F32, F32], table: StateTable) -> tuple[F32, Mask]:
        """Adapt block by block, all streams at once; return each step's scale and missed truths, (T, D, H)."""
        h, slot = self._shape[1], steps.slot
        # Scale at which the interval would have covered the truth.
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            needed = np.abs(error) / np.abs(np.where(error > 0, widths[1], widths[0]))
        counted = np.isfinite(error)
        scales = np.empty(error.shape, np.float32)
        missed = np.zeros(error.shape, np.bool_)
        before = table["scored_steps"][slot]
        position = before[steps.group] + np.arange(len(steps)) - steps.start[steps.group]
        block = position // self._block - (before // self._block)[steps.group]
        # A forecast of a short horizon was issued in the block of its truth, the others in the block before.
        same_block = (position % self._block)[:, None, None] >= np.arange(1, h + 1)
        current, previous = table["interval_scale"][slot, 0], table["interval_scale"][slot, 1]
        truths, misses = table["block_truths"][slot], table["block_misses"][slot]
        for part, owner, first, active in self._blocks(steps, block):
            scales[part] = current[owner]
            miss = needed[part] > np.where(same_block[part], current[owner], previous[owner])
            missed[part] = miss
            truths[active] += np.add.reduceat(counted[part], first, axis=0, dtype=np.int32)
            misses[active] += np.add.reduceat(miss, first, axis=0, dtype=np.int32)
            last = np.append(first[1:], len(miss)) - 1
            full = active[(position[part][last] + 1) % self._block == 0]
            previous[full] = current[full]
            current[full] = self._adapted(current[full], truths[full], misses[full])
            truths[full], misses[full] = 0, 0
        table["interval_scale"][slot, 0], table["interval_scale"][slot, 1] = current, previous
        table["block_truths"][slot], table["block_misses"][slot] = truths, misses
        table["scored_steps"][slot] = before + steps.length
        return scales, missed

    @staticmethod
    def _blocks(steps: Steps, block: I64) -> Iterator[tuple[I64 | slice, I64 | slice, I64, I64]]:
        """Yield per block: its steps, the stream of each, the first step of each stream, and the streams in it."""
        if len(steps.slot) == 1:
            # One stream: its blocks are contiguous, and slices are faster than index arrays.
            begins = np.flatnonzero(block[1:] != block[:-1]) + 1
            zero, only = np.zeros(1, np.int64), slice(0, 1)
            for a, b in zip([0, *begins.tolist()], [*begins.tolist(), len(block)], strict=True):
                yield slice(a, b), only, zero, zero
            return
        for number in range(int(block.max()) + 1):
            part = np.flatnonzero(block == number)
            owner = steps.group[part]
            first = np.flatnonzero(np.concatenate(([True], owner[1:] != owner[:-1])))
            yield part, owner, first, owner[first]

    def _adapted(self, scale: F32, truths: NDArray[np.int32], misses: NDArray[np.int32]) -> F32:
        """Scale after a block, as in the module docstring; unchanged without truths."""
        share = np.where(truths > 0, misses / np.maximum(truths, 1), self._miss_share)
        grown = scale * (1 + self._rate * (share - self._miss_share)).astype(np.float32)
        return np.clip(grown, np.float32(1e-3), np.float32(1e6))

    def _units(self, error: F32) -> F64:
        """Errors as integer multiples of the unit, bounded so that float64 sums millions of them exactly."""
        with np.errstate(invalid="ignore"):
            return np.minimum(np.rint(error / self._unit), _MAX_ERROR)

    def _add_up(self, steps: Steps, error: F32, persistence: F32, missed: Mask, table: StateTable) -> None:
        # Only truths for which persistence has an error too, so that both means are over the same samples.
        counted = np.isfinite(error) & np.isfinite(persistence)
        sums = np.empty((len(steps), _SUMS, *self._shape), np.float64)
        sums[:, 0] = counted
        sums[:, 1] = np.where(counted, self._units(np.abs(error)), 0)
        sums[:, 2] = np.where(counted, self._units(persistence), 0)
        sums[:, 3] = counted & ~missed
        added = np.add.reduceat(sums, steps.start, axis=0)
        table["score_sums"][steps.slot] += added
        self._sums += added.sum(axis=0)


def _miss_runs(steps: Steps, missed: Mask, counted: Mask, breaks: Mask, table: StateTable) -> I32:
    """Update the runs of misses in the table; return the longest of any target at each step, (T,) int32.

    ``missed``: (T, D) truths outside their interval; ``counted``: (T, D) truths with an interval; ``breaks``: (T,)
    resets.
    """
    before = table["consecutive_misses"][steps.slot]
    if not before.any() and not missed.any():
        return np.zeros(len(steps), np.int32)
    if len(steps) == len(steps.slot):  # one step of each stream, the live case
        run = np.where(counted, np.where(missed, before + 1, 0), before)
        run[breaks] = 0
        table["consecutive_misses"][steps.slot] = run
        return run.max(axis=1)
    index = np.arange(len(steps))[:, None]
    ended = np.maximum.accumulate(np.where((counted & ~missed) | breaks[:, None], index, -1), axis=0)
    total = np.cumsum(missed, axis=0, dtype=np.int32)
    carried = before + missed[steps.start] - total[steps.start]
    since_end = total - np.take_along_axis(total, np.maximum(ended, 0), axis=0)
    run = np.where(ended >= steps.start[steps.group][:, None], since_end, total + carried[steps.group])
    table["consecutive_misses"][steps.slot] = run[steps.start + steps.length - 1]
    return run.max(axis=1)


def interval_offsets(calibration: Calibration | None, level: float, shape: tuple[int, int]) -> tuple[F32, F32]:
    """Lower and upper residual quantile at ``level`` for each target and horizon, (D, H) each; NaN if uncalibrated.

    Levels between the stored ones are interpolated; beyond the outermost stored level the quantile of that level is
    used, and the scale adapts.  The lower offset is at most 0, the upper at least 0: the forecast lies inside.
    """
    if calibration is None:
        return np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    table = np.array(calibration.residuals, np.float64)
    tails = ((1 - level) / 2, (1 + level) / 2)
    low, high = (
        np.array([[np.interp(tail, calibration.levels, row) for row in rows] for rows in table]) for tail in tails
    )
    return np.minimum(low, 0).astype(np.float32), np.maximum(high, 0).astype(np.float32)


def _interval_quantiles(head: Forecast) -> tuple[int, int, int, int] | None:
    """Index of the lowest quantile, the median, the highest, and their number; None without a quantile head."""
    if not head.quantiles:
        return None
    return 0, head.quantiles.index(0.5), len(head.quantiles) - 1, len(head.quantiles)
