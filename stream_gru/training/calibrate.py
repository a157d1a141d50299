"""Calibration of a trained network: its residual quantiles and its warm-up.

Both are measured on the validation part, streamed through the runtime engine.
"""

from __future__ import annotations

import numpy as np

from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32, F64, SampleBatch
from stream_gru.model.bundle import Bundle
from stream_gru.model.manifest import Calibration
from stream_gru.training.evaluation.evaluate import StreamedRecording, stream_recording
from stream_gru.training.splits import Segment

LEVELS = (
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5,
    0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 0.995, 0.9975,
)  # fmt: skip
_LONGEST_WARM_UP = 512
_STARTS = 64
# Warmed up: outputs differ from those of a state without reset by less than this fraction of the typical error.
_CLOSE = 0.1
_CLOSE_PROBABILITY = 0.02


def calibrate(bundle: Bundle, streamed: StreamedRecording, validation: SampleBatch, engine: str) -> Calibration | None:
    """Measure the residual quantiles of each target and horizon; None without forecast head or truths.

    ``streamed``: the validation part, as returned by `stream_recording`.  With a quantile head, residuals are divided
    by the half-width that the head predicts on their side.
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
    """Predicted distance of the outermost quantiles from the median, (T, D, H) each.

    With residual quantiles -1 and 1 the interval is exactly that, and never narrower than scoring allows.
    """
    head = bundle.manifest.forecast
    if head is None:
        raise ValueError("a model without a forecast head has no quantiles")
    unit = Calibration(
        levels=[0.05, 0.5, 0.95], residuals=[[[-1.0, 0.0, 1.0]] * head.horizon] * len(head.targets), samples=1
    )
    plain = bundle.with_manifest(calibration=unit)
    streamed = stream_recording(plain, validation, engine, level=0.9, interval_adapt_rate=0.0)
    return streamed.forecast - streamed.lower, streamed.upper - streamed.forecast


def measure_warm_up(
    engine: Engine, segments: list[Segment], forecast_columns: int, unit: F64, typical_error: float
) -> int:
    """Count the steps after a reset until outputs equal those of a state without reset.

    ``unit``: (K,) scale of each output; ``typical_error``: mean absolute forecast error in these units.  Source of the
    idea: contracting recurrent networks forget their initial state (Miller and Hardt, "Stable recurrent models",
    ICLR 2019).  Starts are spread over the longest segment; at most `_LONGEST_WARM_UP` steps.
    """
    longest = max(segments, key=len)
    steps = min(_LONGEST_WARM_UP, len(longest) // 3)
    if steps < 2:
        return 0
    carried, _ = engine.scan(np.ascontiguousarray(longest.x), engine.initial_state(1)[0])
    starts = np.unique(np.linspace(steps, len(longest) - steps, _STARTS).astype(int))
    h = engine.initial_state(len(starts))
    close = np.zeros(steps, np.bool_)
    for step in range(steps):
        started, h = engine.step(np.ascontiguousarray(longest.x[starts + step]), h)
        close[step] = _is_close(started, carried[starts + step], forecast_columns, unit, typical_error)
    apart = np.flatnonzero(~close)
    return int(apart[-1]) + 1 if apart.size else 0


def _is_close(started: F32, carried: F32, forecast_columns: int, unit: F64, typical_error: float) -> bool:
    difference = np.abs(started.astype(np.float64) - carried) / unit
    forecast, classes = difference[:, :forecast_columns], difference[:, forecast_columns:]
    forecast_close = not forecast.size or forecast.mean() <= _CLOSE * typical_error
    return bool(forecast_close and (not classes.size or classes.mean() <= _CLOSE_PROBABILITY))
