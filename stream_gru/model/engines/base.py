"""What the engines share: sizes, initial state and input checks; and a wrapper that times the calls of any engine."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32
from stream_gru.model.manifest import Manifest


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
