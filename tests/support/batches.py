"""Batches of samples and of predictions: plain, hostile, of any kind; and outputs as tuples to compare."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from stream_gru.core.timestamps import LIMIT_NS
from stream_gru.core.types import NS_PER_S, OutputSpec, PredictionBatch, ResetReason, SampleBatch, Status

START_NS = 1_772_323_200 * NS_PER_S
NOON_NS = 1_714_564_800 * NS_PER_S  # 2024-05-01T12:00:00Z
CHANNELS = 3


def batch(
    stream: Sequence[str], time_s: Sequence[float], values: Sequence[Sequence[float]] | None = None, **columns: object
) -> SampleBatch:
    """A batch from plain lists; without ``values``, ramps."""
    names = tuple(dict.fromkeys(stream))
    if values is None:
        values = [[i + c for c in range(CHANNELS)] for i in range(len(stream))]
    return SampleBatch(
        stream_names=names,
        stream_index=np.array([names.index(name) for name in stream], np.int32),
        time_ns=np.array([START_NS + round(t * NS_PER_S) for t in time_s], np.int64),
        values=np.array(values, np.float32).reshape(len(stream), -1),
        **columns,  # type: ignore[arg-type]
    )


@st.composite
def hostile_batches(draw: st.DrawFn, max_rows: int = 120) -> SampleBatch:
    """Rows of up to four streams with repeats, late rows, gaps, clock jumps, flags, sequences, NaN and wild values."""
    n = draw(st.integers(1, max_rows))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    streams = draw(st.integers(1, 4))
    stream = rng.integers(0, streams, n).astype(np.int32)
    jumps = rng.choice([1, 1, 1, 1, 1, 1, 0, 2, 4, 6, 7, 50, -1, -3, -5000], n)
    time = np.zeros(n, np.int64)
    for s in range(streams):
        mine = stream == s
        time[mine] = np.cumsum(jumps[mine])
    values = rng.normal(size=(n, CHANNELS)).astype(np.float32)
    values[rng.random((n, CHANNELS)) < 0.05] = np.nan
    values[rng.random((n, CHANNELS)) < 0.02] = np.inf
    values[rng.random((n, CHANNELS)) < 0.01] = 3e38
    return SampleBatch(
        stream_names=tuple(f"s{i}" for i in range(streams)),
        stream_index=stream,
        time_ns=START_NS + time * NS_PER_S + rng.integers(-(10**8), 10**8, n),
        values=values,
        reset=rng.random(n) < 0.03 if draw(st.booleans()) else None,
        episode=np.cumsum(rng.random(n) < 0.05).astype(np.int64) if draw(st.booleans()) else None,
        label=rng.integers(-1, 2, n).astype(np.int32),
        labels=("a", "b"),
    )


def rows_of(outputs: Sequence[PredictionBatch]) -> list[tuple[object, ...]]:
    """Every output as a tuple of plain bytes and numbers, for comparison bit by bit."""
    return [
        (
            out.stream_names[out.stream_index[i]],
            int(out.time_ns[i]),
            int(out.status[i]),
            int(out.reset[i]),
            int(out.steps_since_reset[i]),
            int(out.imputed[i]),
            None if out.consecutive_misses is None else int(out.consecutive_misses[i]),
            None if out.alarm is None else bool(out.alarm[i]),
            *(None if a is None else a[i].tobytes() for a in (out.forecast, out.lower, out.upper, out.probabilities)),
        )
        for out in outputs
        for i in range(len(out))
    ]


HEAD_NAMES = ("flow", 'quo"te', "100%", "größe", "a,b", "%b", "back\\slash")


@st.composite
def prediction_batches(draw: st.DrawFn, max_rows: int = 12) -> PredictionBatch:
    """Random outputs of a random model."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(0, max_rows))
    targets = HEAD_NAMES[: draw(st.integers(0, 4))]
    horizon = draw(st.integers(1, 4)) if targets else 0
    labels = HEAD_NAMES[: draw(st.sampled_from([0, 1, 3, 7]))]
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

    names = [name for name, field in PredictionBatch.__dataclass_fields__.items() if field.init]
    return PredictionBatch(**{name: cut(getattr(batch, name)) for name in names})  # type: ignore[arg-type]
