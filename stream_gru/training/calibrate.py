"""What a trained network must know of itself before it goes live: its residuals and its warm-up.

Both are measured on the validation part, streamed through the runtime engine.
"""

from __future__ import annotations

import numpy as np

from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32, F64, SampleBatch
from stream_gru.model.bundle import Bundle
from stream_gru.model.manifest import Calibration
from stream_gru.training.evaluation.evaluate import Streamed, stream_through
from stream_gru.training.segments import Run

LEVELS = (
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5,
    0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995, 0.9975,
)  # fmt: skip
_LONGEST_WARM_UP = 512
_STARTS = 64
# Warmed up: an output differs from that of a state which was never reset by less than this part of the usual error.
_CLOSE = 0.1
_CLOSE_PROBABILITY = 0.02


def calibrate(bundle: Bundle, streamed: Streamed, validation: SampleBatch, engine: str) -> Calibration | None:
    """Measure the residual quantiles of each target and horizon; None without a forecast head or without truths.

    ``streamed``: the validation part after its way through the pipeline, as `stream_through` gives it.  With a quantile
    head residuals are divided by the half-width the head predicts on their side.
    """
    head = bundle.manifest.forecast
    if head is None:
        return None
    residuals = streamed.truth - streamed.forecast
    if head.quantiles:
        lower, upper = _half_widths(bundle, validation, engine)
        residuals = residuals / np.where(residuals < 0, lower, upper)
    flat = residuals.reshape(len(residuals), -1)
    counted = np.isfinite(flat).sum(axis=0)
    if not counted.all():
        return None
    table = np.nanquantile(flat, LEVELS, axis=0).T.reshape(*residuals.shape[1:], len(LEVELS))
    return Calibration(levels=list(LEVELS), residuals=table.tolist(), samples=int(counted.min()))


def _half_widths(bundle: Bundle, validation: SampleBatch, engine: str) -> tuple[F64, F64]:
    """What a quantile head predicts for the distance of its outermost quantiles from the median, (T, D, H) each.

    With residual quantiles of -1 and 1 at its level the interval is exactly that; never narrower than scoring allows.
    """
    head = bundle.manifest.forecast
    if head is None:
        raise ValueError("a model without a forecast head has no quantiles")
    unit = Calibration(
        levels=[0.05, 0.5, 0.95], residuals=[[[-1.0, 0.0, 1.0]] * head.horizon] * len(head.targets), samples=1
    )
    plain = bundle.with_manifest(calibration=unit)
    streamed = stream_through(plain, validation, engine, level=0.9, interval_adapt_rate=0.0)
    return streamed.forecast - streamed.lower, streamed.upper - streamed.forecast


def measure_warm_up(engine: Engine, runs: list[Run], forecast_columns: int, unit: F64, usual_error: float) -> int:
    """Steps after a reset until outputs are those of a state that was never reset.

    ``unit``: (K,) scale of each output; ``usual_error``: mean absolute forecast error in these units.  Source of the
    idea: contracting recurrent networks forget their initial state (Miller and Hardt, "Stable recurrent models",
    ICLR 2019).  Starts are spread over the runs; at most `_LONGEST_WARM_UP` steps.
    """
    longest = max(runs, key=len)
    steps = min(_LONGEST_WARM_UP, len(longest) // 3)
    if steps < 2:
        return 0
    carried, _ = engine.scan(np.ascontiguousarray(longest.x), engine.initial_state(1)[0])
    starts = np.unique(np.linspace(steps, len(longest) - steps, _STARTS).astype(int))
    h = engine.initial_state(len(starts))
    close = np.zeros(steps, np.bool_)
    for step in range(steps):
        fresh, h = engine.step(np.ascontiguousarray(longest.x[starts + step]), h)
        close[step] = _is_close(fresh, carried[starts + step], forecast_columns, unit, usual_error)
    apart = np.flatnonzero(~close)
    return int(apart[-1]) + 1 if apart.size else 0


def _is_close(fresh: F32, carried: F32, forecast_columns: int, unit: F64, usual_error: float) -> bool:
    difference = np.abs(fresh.astype(np.float64) - carried) / unit
    forecast, classes = difference[:, :forecast_columns], difference[:, forecast_columns:]
    forecast_close = not forecast.size or forecast.mean() <= _CLOSE * usual_error
    return bool(forecast_close and (not classes.size or classes.mean() <= _CLOSE_PROBABILITY))
