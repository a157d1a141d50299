"""Forecast and classify sensors live, with a recurrent model whose hidden state is kept for each device.

>>> from stream_gru import Pipeline, load_bundle
>>> pipeline = Pipeline(load_bundle("pump.bundle"))
>>> out = pipeline.push("pump-3", "2026-03-01T00:00:01Z", {"flow": 41.2, "pressure": 310.0})

Public names are imported when they are asked for: the command line shall listen to signals before it loads anything.
"""

TYPE_CHECKING = False  # type checkers take it as true, and the module `typing` need not be loaded

if TYPE_CHECKING:
    from stream_gru.core.prediction import Prediction
    from stream_gru.core.types import DropReason, PredictionBatch, ResetReason, SampleBatch, Status
    from stream_gru.model.bundle import Bundle, load_bundle
    from stream_gru.pipeline.pipeline import Pipeline

__version__ = "0.2.0"

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

_HOMES = {
    "Bundle": "model.bundle",
    "Pipeline": "pipeline.pipeline",
    "Prediction": "core.prediction",
    "load_bundle": "model.bundle",
    **dict.fromkeys(("DropReason", "PredictionBatch", "ResetReason", "SampleBatch", "Status"), "core.types"),
}


if not TYPE_CHECKING:  # else every name would be known to type checkers

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
