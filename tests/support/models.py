"""Bundles in memory with random weights, without TensorFlow; every test that needs a model takes one from here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stream_gru.bundle import Bundle
from stream_gru.config.kinds import Activation, CalendarFeature, Cell
from stream_gru.config.schema import ConditioningConfig, InputConfig
from stream_gru.manifest import Channel, Classes, Forecast, Layer, Manifest, weight_shapes
from stream_gru.types import F32

CALENDAR: tuple[CalendarFeature, ...] = ("hour_of_day", "day_of_week", "minute_of_hour", "day_of_year")


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
    class_activation: str = "softmax",
    period_s: float = 1.0,
    warm_up: int = 0,
    seed: int = 0,
    with_tflite: bool = False,
    scan_steps: int | None = None,
) -> Bundle:
    """Return a bundle of random weights; ``horizon``, ``targets`` or ``labels`` 0 leave that head out.

    ``with_tflite`` exports the flatbuffer as well, which needs TensorFlow.
    """
    layers = []
    width = channels + 2 * calendar
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
    if horizon and targets:
        names = [f"c{i}" for i in reversed(range(targets))]
        forecast = Forecast(targets=names, horizon=horizon, residual=residual, quantiles=list(quantiles))
    manifest = Manifest(
        format_version=1,
        model_id=f"test-{seed}",
        created="2024-01-01T00:00:00Z",
        versions={},
        regime="stateful",
        window=None,
        period_s=period_s,
        input=InputConfig(),
        conditioning=ConditioningConfig(),
        channels=[Channel(name=f"c{i}", unit="V", seen_min=-10.0, seen_max=10.0) for i in range(channels)],
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
    return weights


def random_inputs(manifest: Manifest, rows: int, seed: int = 1) -> F32:
    """Draw ``(rows, I)`` inputs: channels around their mean in engineering units, calendar inputs in -1..1."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (rows, manifest.input_size))
    x[:, : len(manifest.channels)] *= 8
    return x.astype(np.float32)


def _classes(labels: int, activation: str) -> Classes | None:
    if not labels:
        return None
    names = [f"label{i}" for i in range(labels)]
    return Classes(labels=names, activation="sigmoid" if activation == "sigmoid" else "softmax")


def _export(manifest: Manifest, weights: dict[str, F32], scan_steps: int | None) -> bytes:
    from stream_gru.training.export import export_tflite

    return export_tflite(manifest, weights, scan_steps)
