"""Registry of engines, which compute the network: one file per engine and one row in `ENGINES`.

litert   ai-edge-litert on the bundle's flatbuffer; the same bits for every batch size, step and scan
numpy    numpy only, always available; equal within rounding
onnx     onnxruntime on a graph built from the weights; equal within rounding, not chosen by ``auto``
keras    Keras on the same weights; the slow reference, needs the training extra
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from time import perf_counter

import numpy as np

from stream_gru.core.errors import ConfigError
from stream_gru.core.plugins import Registry
from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.manifest import Manifest

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


class EngineBase:
    """Sizes of a network (I inputs, S state numbers, K outputs) and what every engine does with them."""

    def __init__(self, manifest: Manifest) -> None:
        self.input_size = manifest.input_size
        self.state_size = manifest.state_size
        self.output_size = manifest.output_size

    def initial_state(self, n: int) -> F32:
        """Return zeros, (n, S) float32."""
        return np.zeros((n, self.state_size), np.float32)

    def _check_step(self, x: F32, h: F32) -> None:
        """Raise ValueError unless x is (B, I) and h (B, S), both float32."""
        rows = x.shape[0] if x.ndim else 0
        _check("x", x, (rows, self.input_size), f"(B, {self.input_size})")
        _check("h", h, (rows, self.state_size), f"({rows}, {self.state_size})")

    def _check_scan(self, x: F32, h: F32) -> None:
        """Raise ValueError unless x is (T, I) and h (S,), both float32."""
        rows = x.shape[0] if x.ndim else 0
        _check("x", x, (rows, self.input_size), f"(T, {self.input_size})")
        _check("h", h, (self.state_size,), f"({self.state_size},)")


def _check(name: str, array: F32, shape: tuple[int, ...], expected: str) -> None:
    if array.shape != shape or array.dtype != np.float32:
        msg = f"{name}: expected shape {expected} float32, got {array.shape} {array.dtype}"
        raise ValueError(msg)


class TimedEngine:
    """Delegates to ``engine`` and calls ``observe`` with the duration of each step and scan, in seconds."""

    def __init__(self, engine: Engine, observe: Callable[[float], None]) -> None:
        self._engine, self._observe = engine, observe
        self.name = engine.name
        self.input_size, self.state_size, self.output_size = engine.input_size, engine.state_size, engine.output_size

    def initial_state(self, n: int) -> F32:
        """Return the initial state of the wrapped engine, (n, S)."""
        return self._engine.initial_state(n)

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Run and time a step: ``(B, I), (B, S) -> (B, K), (B, S)``."""
        begin = perf_counter()
        result = self._engine.step(x, h)
        self._observe(perf_counter() - begin)
        return result

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Run and time a scan: ``(T, I), (S,) -> (T, K), (S,)``."""
        begin = perf_counter()
        result = self._engine.scan(x, h)
        self._observe(perf_counter() - begin)
        return result
