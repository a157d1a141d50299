"""Forecast and classify sensors live, with a recurrent model that keeps a hidden state for each device.

>>> from stream_gru import Pipeline, load_bundle
>>> pipeline = Pipeline(load_bundle("pump.bundle"))
>>> out = pipeline.push("pump-3", "2026-03-01T00:00:01Z", {"flow": 41.2, "pressure": 310.0})

`Engine`, `Source`, `Decoder` and `Sink` are the Protocols for parts of your own.  Public names are imported on demand,
so that the command line handles signals before it loads anything.
"""

TYPE_CHECKING = False  # type checkers take it as true; `typing` is not loaded

if TYPE_CHECKING:
    from stream_gru.config.connector import SinkContext, SinkTable, SourceContext, SourceTable
    from stream_gru.config.problems import Problem
    from stream_gru.connectors.decoders.field_map import Fields
    from stream_gru.connectors.decoders.record_batch import RecordBatch, RecordDecoder
    from stream_gru.core.commit_records import FlushResult, SinkCheckpoint
    from stream_gru.core.errors import ConfigError, EndOfInput, SinkUnavailable, SourceUnavailable, StreamGruError
    from stream_gru.core.prediction import Prediction, prediction_at
    from stream_gru.core.protocols import Decoder, Engine, Sink, Source
    from stream_gru.core.types import (
        DropReason,
        Position,
        PredictionBatch,
        RawMessage,
        Rejected,
        ResetReason,
        SampleBatch,
        SinkHealth,
        SourceHealth,
        Status,
    )
    from stream_gru.model.bundle import Bundle, load_bundle
    from stream_gru.model.engines.registry import EngineBase
    from stream_gru.pipeline.alarms import AlarmRule
    from stream_gru.pipeline.pipeline import Pipeline

__version__ = "0.2.0"

_NAMES = {
    "config.connector": ("SinkContext", "SinkTable", "SourceContext", "SourceTable"),
    "config.problems": ("Problem",),
    "connectors.decoders.field_map": ("Fields",),
    "connectors.decoders.record_batch": ("RecordBatch", "RecordDecoder"),
    "core.commit_records": ("FlushResult", "SinkCheckpoint"),
    "core.errors": ("ConfigError", "EndOfInput", "SinkUnavailable", "SourceUnavailable", "StreamGruError"),
    "core.prediction": ("Prediction", "prediction_at"),
    "core.protocols": ("Decoder", "Engine", "Sink", "Source"),
    "core.types": (
        "DropReason",
        "Position",
        "PredictionBatch",
        "RawMessage",
        "Rejected",
        "ResetReason",
        "SampleBatch",
        "SinkHealth",
        "SourceHealth",
        "Status",
    ),
    "model.bundle": ("Bundle", "load_bundle"),
    "model.engines.registry": ("EngineBase",),
    "pipeline.alarms": ("AlarmRule",),
    "pipeline.pipeline": ("Pipeline",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "AlarmRule",
    "Bundle",
    "ConfigError",
    "Decoder",
    "DropReason",
    "EndOfInput",
    "Engine",
    "EngineBase",
    "Fields",
    "FlushResult",
    "Pipeline",
    "Position",
    "Prediction",
    "PredictionBatch",
    "Problem",
    "RawMessage",
    "RecordBatch",
    "RecordDecoder",
    "Rejected",
    "ResetReason",
    "SampleBatch",
    "Sink",
    "SinkCheckpoint",
    "SinkContext",
    "SinkHealth",
    "SinkTable",
    "SinkUnavailable",
    "Source",
    "SourceContext",
    "SourceHealth",
    "SourceTable",
    "SourceUnavailable",
    "Status",
    "StreamGruError",
    "load_bundle",
    "prediction_at",
]


if not TYPE_CHECKING:  # otherwise type checkers would accept every name

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
