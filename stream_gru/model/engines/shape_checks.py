"""What every engine checks before it computes."""

from __future__ import annotations

import numpy as np

from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32


def check_step(engine: Engine, x: F32, h: F32) -> None:
    """Raise ValueError unless x is (B, I) and h (B, S), both float32."""
    rows = x.shape[0] if x.ndim else 0
    _check("x", x, (rows, engine.input_size), f"(B, {engine.input_size})")
    _check("h", h, (rows, engine.state_size), f"({rows}, {engine.state_size})")


def check_scan(engine: Engine, x: F32, h: F32) -> None:
    """Raise ValueError unless x is (T, I) and h (S,), both float32."""
    rows = x.shape[0] if x.ndim else 0
    _check("x", x, (rows, engine.input_size), f"(T, {engine.input_size})")
    _check("h", h, (engine.state_size,), f"({engine.state_size},)")


def _check(name: str, array: F32, shape: tuple[int, ...], expected: str) -> None:
    if array.shape != shape or array.dtype != np.float32:
        msg = f"{name}: expected shape {expected} float32, got {array.shape} {array.dtype}"
        raise ValueError(msg)
