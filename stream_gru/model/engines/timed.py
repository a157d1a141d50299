"""An engine that tells how long each call took; the numbers are those of the engine inside."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from stream_gru.core.protocols import Engine
from stream_gru.core.types import F32


class TimedEngine:
    """Wraps an engine; ``observe`` is told the seconds of each call."""

    def __init__(self, engine: Engine, observe: Callable[[float], None]) -> None:
        self._engine, self._observe = engine, observe
        self.name = engine.name
        self.input_size, self.state_size, self.output_size = engine.input_size, engine.state_size, engine.output_size

    def initial_state(self, n: int) -> F32:
        """As the engine inside."""
        return self._engine.initial_state(n)

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """As the engine inside, timed."""
        begin = perf_counter()
        result = self._engine.step(x, h)
        self._observe(perf_counter() - begin)
        return result

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """As the engine inside, timed."""
        begin = perf_counter()
        result = self._engine.scan(x, h)
        self._observe(perf_counter() - begin)
        return result
