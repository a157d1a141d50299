"""Batches of predictions of any kind: all heads, none, NaN, every status and reset."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from stream_gru.core.timestamps import LIMIT_NS
from stream_gru.core.types import OutputSpec, PredictionBatch, ResetReason, Status

NAMES = ("flow", 'quo"te', "100%", "größe", "a,b", "%b", "back\\slash")


@st.composite
def prediction_batches(draw: st.DrawFn, max_rows: int = 12) -> PredictionBatch:
    """Random outputs of a random model."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(0, max_rows))
    targets = NAMES[: draw(st.integers(0, 4))]
    horizon = draw(st.integers(1, 4)) if targets else 0
    labels = NAMES[: draw(st.sampled_from([0, 1, 3, 7]))]
    spec = OutputSpec(
        model_id=draw(st.sampled_from(["0123456789ab", "50%d"])),
        targets=targets,
        horizon=horizon,
        labels=labels,
        exclusive=draw(st.booleans()),
        level=draw(st.sampled_from([0.9, 0.5, 0.123456789, 1e-7])),
        warm_up=draw(st.integers(0, 60)),
    )

    def numbers(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        found = (rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30, shape)).astype(np.float32)
        found[rng.random(shape) < 0.1] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e16, 16777216])
        return found

    table = (n, len(targets), horizon)
    calibrated = draw(st.booleans())
    return PredictionBatch(
        spec=spec,
        stream_names=("p1", "site/2 b", "%s"),
        stream_index=rng.integers(0, 3, n).astype(np.int32),
        time_ns=rng.integers(-LIMIT_NS + 1, LIMIT_NS, n) // rng.choice([1, 1000, 10**9]) * rng.choice([1, 1000]),
        status=rng.integers(0, len(Status), n).astype(np.uint8),
        reset=rng.integers(0, len(ResetReason), n).astype(np.uint8),
        steps_since_reset=rng.integers(1, 10_000, n),
        imputed=rng.integers(0, 4, n).astype(np.int32),
        device_seq=rng.integers(-2, 2**62, n) if draw(st.booleans()) else None,
        forecast=numbers(*table) if targets else None,
        lower=numbers(*table) if targets and calibrated else None,
        upper=numbers(*table) if targets and calibrated else None,
        probabilities=numbers(n, len(labels)) if labels else None,
        consecutive_misses=rng.integers(0, 9, n).astype(np.int32) if targets and calibrated else None,
        alarm=rng.random(n) < 0.5 if draw(st.booleans()) else None,
    )


def part(batch: PredictionBatch, rows: slice) -> PredictionBatch:
    """Some rows of a batch."""

    def cut(column: object) -> object:
        return column[rows] if isinstance(column, np.ndarray) else column

    names = PredictionBatch.__dataclass_fields__
    return PredictionBatch(**{name: cut(getattr(batch, name)) for name in names})  # type: ignore[arg-type]
