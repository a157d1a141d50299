"""Hostile but readable streams of samples, and a pipeline to feed them to."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from hypothesis import strategies as st

from stream_gru.core.types import NS_PER_S, PredictionBatch, SampleBatch
from stream_gru.model.bundle import Bundle, Calibration
from stream_gru.pipeline.pipeline import Pipeline
from tests.support.models import make_bundle
from tests.support.toy_engine import ToyEngine

START_NS = 1_772_323_200 * NS_PER_S
CHANNELS = 3


def calibrated(bundle: Bundle, **changes: object) -> Bundle:
    """The bundle with residual quantiles of -1, 0 and 1, and with other changes to its manifest."""
    head = bundle.manifest.forecast
    if head is not None:
        row = [-1.0, 0.0, 1.0]
        changes["calibration"] = Calibration(
            levels=[0.05, 0.5, 0.95], residuals=[[row] * head.horizon] * len(head.targets), samples=100
        )
    manifest = msgspec.structs.replace(bundle.manifest, **changes)
    return Bundle(bundle.path, manifest, bundle.weights, bundle.tflite)


def toy_pipeline(bundle: Bundle | None = None, **options: object) -> Pipeline:
    """A pipeline over a `ToyEngine` of the bundle's sizes."""
    bundle = bundle or calibrated(make_bundle(channels=CHANNELS, labels=2, warm_up=2))
    manifest = bundle.manifest
    engine = ToyEngine(manifest.input_size, manifest.state_size, manifest.output_size)
    return Pipeline(bundle, engine, **options)  # type: ignore[arg-type]


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
