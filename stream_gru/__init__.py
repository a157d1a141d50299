"""Forecast and classify sensors live, with a recurrent model whose hidden state is kept for each device.

>>> from stream_gru import Pipeline, load_bundle
>>> pipeline = Pipeline(load_bundle("pump.bundle"))
>>> out = pipeline.push("pump-3", "2026-03-01T00:00:01Z", {"flow": 41.2, "pressure": 310.0})
"""

from stream_gru.bundle import Bundle, load_bundle
from stream_gru.pipeline import Pipeline
from stream_gru.prediction import Prediction
from stream_gru.types import DropReason, PredictionBatch, ResetReason, SampleBatch, Status

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "DropReason",
    "Pipeline",
    "Prediction",
    "PredictionBatch",
    "ResetReason",
    "SampleBatch",
    "Status",
    "load_bundle",
]
