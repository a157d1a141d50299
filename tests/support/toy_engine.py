"""An engine for tests of everything around the engine: element by element, so exact for any batch."""

from __future__ import annotations

import numpy as np

from stream_gru.core.types import F32


class ToyEngine:
    """h' = h / 2 + sum of the inputs on each state number; output k = h'[0] + k.  S and K are free."""

    name = "toy"

    def __init__(self, input_size: int, state_size: int, output_size: int) -> None:
        self.input_size, self.state_size, self.output_size = input_size, state_size, output_size

    def initial_state(self, n: int) -> F32:
        """Return zeros, (n, S)."""
        return np.zeros((n, self.state_size), np.float32)

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance B streams."""
        total = np.zeros((len(x), 1), np.float32)
        with np.errstate(all="ignore"):
            for column in x.T:  # added in a fixed order: the same bits for every batch size
                total[:, 0] += column
            new: F32 = (h * np.float32(0.5) + total).astype(np.float32)
            # A state that overflows breaks for good, as that of a real network does.
            new[~np.isfinite(new)] = np.nan
        outputs: F32 = (new[:, :1] + np.arange(self.output_size)).astype(np.float32)
        return outputs, new

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance one stream."""
        outputs = np.empty((len(x), self.output_size), np.float32)
        state = h[None]
        for index in range(len(x)):
            out, state = self.step(x[index : index + 1], state)
            outputs[index] = out[0]
        return outputs, state[0]
