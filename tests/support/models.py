"""Bundles in memory with random weights, without TensorFlow; every test that needs a model takes one from here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stream_gru.config.field_types import Activation, CalendarFeature, Cell, ClassActivation
from stream_gru.config.train_schema import ConditioningConfig, InputConfig
from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.manifest import Channel, Classes, Embedding, Forecast, Layer, Manifest, weight_shapes

TOLERANCE = 2e-5  # of another order of float32 operations
CALENDAR: tuple[CalendarFeature, ...] = ("hour_of_day", "day_of_week", "minute_of_hour", "day_of_year")

# Options of `make_bundle` for networks whose export is easy to get wrong.
CELLS_AND_HEADS: dict[str, dict[str, Any]] = {
    "gru": {},
    "gru_before": {"reset_after": False},
    "gru_no_bias": {"use_bias": False},
    "gru_before_no_bias": {"use_bias": False, "reset_after": False},
    "lstm": {"cell": "lstm"},
    "lstm_stacked": {"cell": "lstm", "units": (6, 5), "use_bias": False},
    "simple_rnn": {"cell": "simple_rnn", "residual": False},
    "stacked_of_three": {"units": (6, 9, 4), "calendar": 4},
    "quantiles": {"quantiles": (0.1, 0.5, 0.9), "labels": 0},
    "only_classes": {"horizon": 0, "labels": 5},
}


def make_bundle(
    path: Path | None = None,
    *,
    cell: Cell = "gru",
    units: Sequence[int] = (8,),
    channels: int = 3,
    horizon: int = 4,
    targets: int = 2,
    labels: int = 3,
    residual: bool = True,
    quantiles: Sequence[float] = (),
    calendar: int = 0,
    reset_after: bool = True,
    use_bias: bool = True,
    activation: Activation = "tanh",
    recurrent_activation: Activation = "sigmoid",
    class_activation: ClassActivation = "softmax",
    categories: Sequence[int] = (),
    embedding: int = 0,
    period_s: float = 1.0,
    warm_up: int = 0,
    seed: int = 0,
    with_tflite: bool = False,
    scan_steps: int | None = None,
) -> Bundle:
    """Return a bundle of random weights; ``horizon``, ``targets`` or ``labels`` 0 leave that head out.

    ``categories``: for each a channel ``k<i>`` of so many categories stands behind the ``channels`` quantities; the
    first of them has an ``embedding`` of that size (0: one-hot, as the others).
    ``with_tflite`` exports the flatbuffer as well, which needs TensorFlow.
    """
    layers = []
    embedded = embedding if categories else 0
    width = channels + 2 * calendar + sum(categories) + (embedded - categories[0] if embedded else 0)
    for i, n in enumerate(units):
        layers.append(
            Layer(
                name=f"recurrent_{i}",
                cell=cell,
                units=n,
                input_size=width,
                activation=activation,
                recurrent_activation=recurrent_activation,
                use_bias=use_bias,
                reset_after=reset_after and cell == "gru",
            )
        )
        width = n
    forecast = None
    if horizon and targets and channels:
        names = [f"c{i}" for i in reversed(range(targets))]
        forecast = Forecast(targets=names, horizon=horizon, residual=residual, quantiles=list(quantiles))
    manifest = Manifest(
        format_version=2,
        model_id=f"test-{seed}",
        created="2024-01-01T00:00:00Z",
        versions={},
        regime="stateful",
        window=None,
        period_s=period_s,
        input=InputConfig(),
        conditioning=ConditioningConfig(),
        channels=[
            *(Channel(name=f"c{i}", unit="V", seen_min=-10.0, seen_max=10.0) for i in range(channels)),
            *(Channel(name=f"k{i}", seen_min=0.0, seen_max=n - 1.0, categories=n) for i, n in enumerate(categories)),
        ],
        embeddings=[Embedding(channel="k0", units=embedded)] if embedded else [],
        calendar=list(CALENDAR[:calendar]),
        layers=layers,
        forecast=forecast,
        classes=_classes(labels, class_activation),
        state_size=sum(layer.state_size for layer in layers),
        warm_up=warm_up,
        calibration=None,
        parity=[],
        scores={},
        files={},
    )
    weights = random_weights(manifest, seed)
    tflite = _export(manifest, weights, scan_steps) if with_tflite else None
    return Bundle(path=path or Path("memory"), manifest=manifest, weights=weights, tflite=tflite)


def random_weights(manifest: Manifest, seed: int = 0) -> dict[str, F32]:
    """Draw weights whose recurrence contracts, so that rounding errors do not grow over long runs."""
    rng = np.random.default_rng(seed)
    weights: dict[str, F32] = {}
    for name, shape in weight_shapes(manifest).items():
        bound = 0.9 if name.endswith("recurrent_kernel") else 1.5
        spread = bound / np.sqrt(shape[0]) if name.endswith("kernel") else 0.3
        value = rng.uniform(-spread, spread, shape)
        weights[name] = np.ascontiguousarray(value, np.float32)
    weights["scaling/mean"] = rng.uniform(-2, 2, weights["scaling/mean"].shape).astype(np.float32)
    weights["scaling/scale"] = rng.uniform(0.5, 4, weights["scaling/scale"].shape).astype(np.float32)
    for part in manifest.categorical:
        weights["scaling/mean"][part.index], weights["scaling/scale"][part.index] = 0, 1
    return weights


def random_inputs(manifest: Manifest, rows: int, seed: int = 1) -> F32:
    """Draw ``(rows, I)`` inputs: channels around their mean in engineering units, calendar inputs in -1..1."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (rows, manifest.input_size))
    x[:, : len(manifest.channels)] *= 8
    for part in manifest.categorical:
        x[:, part.index] = rng.integers(0, part.categories, rows)
    return x.astype(np.float32)


def _classes(labels: int, activation: ClassActivation) -> Classes | None:
    if not labels:
        return None
    return Classes(labels=[f"label{i}" for i in range(labels)], activation=activation)


def _export(manifest: Manifest, weights: dict[str, F32], scan_steps: int | None) -> bytes:
    from stream_gru.model.keras.litert_graph import export_tflite

    return export_tflite(manifest, weights, scan_steps)
