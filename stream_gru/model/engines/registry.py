"""Registry of engines, which compute the network: one file per engine and one row in `ENGINES`.

litert   ai-edge-litert on the bundle's flatbuffer; the same bits for every batch size, step and scan
numpy    numpy only, always available; equal within rounding
onnx     onnxruntime on a graph built from the weights; equal within rounding, not chosen by ``auto``
keras    Keras on the same weights; the slow reference, needs the training extra
"""

from __future__ import annotations

from importlib.util import find_spec

from stream_gru.core.errors import ConfigError
from stream_gru.core.plugins import Registry
from stream_gru.core.protocols import Engine
from stream_gru.model.bundle import Bundle

ENGINES = Registry(
    "engine",
    "engine",
    {
        "litert": "stream_gru.model.engines.litert:LitertEngine",
        "numpy": "stream_gru.model.engines.numpy_engine:NumpyEngine",
        "onnx": "stream_gru.model.engines.onnx_engine:OnnxEngine",
        "keras": "stream_gru.model.engines.keras_engine:KerasEngine",
    },
    packages={
        "litert": "pip install ai-edge-litert",
        "onnx": "pip install 'stream-gru[onnx]'",
        "keras": "pip install 'stream-gru[train]'",
    },
)


def load_engine(name: str, bundle: Bundle) -> Engine:
    """Load the engine ``name`` for a bundle; ``auto`` is litert if it can run, else numpy.

    Raises ConfigError for an unknown name or a missing package, BundleError if the bundle does not fit the engine.
    """
    if name == "auto":
        name = "litert" if bundle.tflite is not None and find_spec("ai_edge_litert") else "numpy"
    if name not in ENGINES:
        raise ConfigError(f"engine: expected auto, {', '.join(ENGINES.names())}, got {name!r}")
    engine = ENGINES.build(name, bundle)
    if not isinstance(engine, Engine):
        raise ConfigError(f"engine: {name}: expected an object that fulfils Engine, got {engine!r:.100}")
    return engine
