"""What the numbers that go into a network and come out of it are called, in their order; for files other tools read."""

from __future__ import annotations

from stream_gru.model.manifest import Forecast, Manifest


def input_names(manifest: Manifest) -> list[str]:
    """Names of the I inputs: channels, then sine and cosine of each calendar feature."""
    calendar = [f"{wave} of {feature}" for feature in manifest.calendar for wave in ("sine", "cosine")]
    return [*(channel.name for channel in manifest.channels), *calendar]


def output_names(manifest: Manifest) -> list[str]:
    """Names of the K outputs: ``target +steps`` (with the quantile, if any), then the probability of each label.

    >>> _forecast_names(Forecast(targets=["flow"], horizon=2, residual=True))
    ['flow +1', 'flow +2']
    """
    labels = [] if manifest.classes is None else manifest.classes.labels
    forecast = [] if manifest.forecast is None else _forecast_names(manifest.forecast)
    return [*forecast, *(f"probability of {label}" for label in labels)]


def _forecast_names(head: Forecast) -> list[str]:
    quantiles = [f" quantile {q:g}" for q in head.quantiles] or [""]
    steps = range(1, head.horizon + 1)
    return [f"{target} +{step}{quantile}" for target in head.targets for step in steps for quantile in quantiles]
