"""Rules between the keys of a manifest, checked before any array is read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from stream_gru.config.field_types import MAX_CATEGORIES, MAX_ONE_HOT
from stream_gru.model.manifest import Channel, Forecast, Manifest

MAX_SECONDS = 1e9
MAX_CHANNELS = 4096
MAX_LAYERS = 256


def validate(manifest: Manifest) -> Iterator[str]:
    """Yield each broken rule as ``key: expected ..., got ...``; nothing for a valid manifest."""
    names = [channel.name for channel in manifest.channels]
    if not names or len(set(names)) != len(names):
        yield f"channels: expected distinct names, at least one, got {names}"
    if len(names) > MAX_CHANNELS:
        yield f"channels: expected at most {MAX_CHANNELS:,}, got {len(names):,}"
        return
    if not manifest.layers:
        yield "layers: expected at least one recurrent layer, got none"
    if len(manifest.layers) > MAX_LAYERS:
        yield f"layers: expected at most {MAX_LAYERS}, got {len(manifest.layers):,}"
        return
    yield from _embedding_problems(manifest)
    width = manifest.feature_size
    for index, layer in enumerate(manifest.layers):
        if layer.name != f"recurrent_{index}" or not 1 <= layer.units <= 4096 or layer.input_size != width:
            yield f"layers[{index}]: expected recurrent_{index} with {width} inputs and 1..4096 units, got {layer}"
        width = layer.units
    if manifest.state_size != sum(layer.state_size for layer in manifest.layers):
        yield f"state_size: expected the sum over the layers, got {manifest.state_size}"
    if manifest.forecast is None and manifest.classes is None:
        yield "expected a forecast head, a class head or both, got none"
    if manifest.forecast is not None:
        yield from _forecast_problems(manifest, manifest.forecast, names)
    if manifest.classes is not None:
        labels = manifest.classes.labels
        if not labels or len(set(labels)) != len(labels):
            yield f"classes.labels: expected distinct labels, at least one, got {labels}"
        if manifest.classes.activation == "logistic" and len(labels) != 2:
            yield f"classes.labels: expected two labels with activation logistic, got {labels}"
    if manifest.regime == "windowed" and not (manifest.window and manifest.window > 0):
        yield f"window: expected a positive number of steps for the windowed regime, got {manifest.window}"
    if not 0 < manifest.period_s <= MAX_SECONDS:
        yield f"period_s: expected a positive number of seconds, at most {MAX_SECONDS:.0e}, got {manifest.period_s}"
    if not 0 < manifest.conditioning.clock_backwards_s <= MAX_SECONDS:
        found = manifest.conditioning.clock_backwards_s
        yield f"conditioning.clock_backwards_s: expected seconds, at most {MAX_SECONDS:.0e}, got {found}"
    if manifest.warm_up < 0:
        yield f"warm_up: expected a number of steps, got {manifest.warm_up}"
    for index, channel in enumerate(manifest.channels):
        yield from _channel_problems(f"channels[{index}]", channel)


def _embedding_problems(manifest: Manifest) -> Iterator[str]:
    categorical = [manifest.channels[part.index].name for part in manifest.categorical]
    embedded = [embedding.channel for embedding in manifest.embeddings]
    if len(set(embedded)) != len(embedded) or not set(embedded) <= set(categorical):
        yield f"embeddings: expected distinct channels among {categorical}, got {embedded}"
    for index, embedding in enumerate(manifest.embeddings):
        if not 1 <= embedding.units <= MAX_ONE_HOT:
            yield f"embeddings[{index}].units: expected 1..{MAX_ONE_HOT:,}, got {embedding.units}"
    for part in manifest.categorical:
        if part.categories > MAX_CATEGORIES or part.width > MAX_ONE_HOT:
            yield (
                f"channels[{part.index}].categories: expected at most {MAX_ONE_HOT:,} without an embedding,"
                f" got {part.categories:,}"
            )


def _channel_problems(where: str, channel: Channel) -> Iterator[str]:
    if channel.categories < 0:
        yield f"{where}.categories: expected 0 or a number of categories, got {channel.categories}"
    for key in ("seen_min", "seen_max", "min", "max"):
        value = getattr(channel, key)
        if value is not None and not math.isfinite(value):
            yield f"{where}.{key}: expected a finite number, got {value}"
    if channel.min is not None and channel.max is not None and not channel.min < channel.max:
        yield f"{where}: expected min below max, got {channel.min} and {channel.max}"


def _forecast_problems(manifest: Manifest, head: Forecast, names: list[str]) -> Iterator[str]:
    numeric = [names[index] for index in manifest.numeric_index]
    if not head.targets or len(set(head.targets)) != len(head.targets) or not set(head.targets) <= set(numeric):
        yield f"forecast.targets: expected channels among {numeric}, got {head.targets}"
    if not 1 <= head.horizon <= 1024:
        yield f"forecast.horizon: expected 1..1024 steps, got {head.horizon}"
    ascending = all(a < b for a, b in itertools.pairwise([0.0, *head.quantiles, 1.0]))
    if head.quantiles and (not ascending or 0.5 not in head.quantiles or len(head.quantiles) < 3):
        yield f"forecast.quantiles: expected ascending levels around 0.5, got {head.quantiles}"
    calibration = manifest.calibration
    if calibration is None:
        return
    if calibration.samples < 1:
        yield f"calibration.samples: expected at least 1, got {calibration.samples}"
    shape = (len(head.targets), head.horizon, len(calibration.levels))
    table = calibration.residuals
    if len(table) != shape[0] or any(
        len(rows) != shape[1] or any(len(row) != shape[2] for row in rows) for rows in table
    ):
        yield f"calibration.residuals: expected a table of shape {shape}"
    if len(calibration.levels) < 3 or not all(a < b for a, b in itertools.pairwise([0.0, *calibration.levels, 1.0])):
        yield "calibration.levels: expected at least three ascending probabilities between 0 and 1"
