"""Engine on Keras with the weights of a bundle: the slow reference that the other engines are compared with."""

from __future__ import annotations

import numpy as np

from stream_gru.core.types import F32
from stream_gru.model.bundle import Bundle
from stream_gru.model.engines.registry import EngineBase


class KerasEngine(EngineBase):
    """Engine on the explicit-state Keras model; the constructor imports keras, which takes seconds."""

    name = "keras"

    def __init__(self, bundle: Bundle) -> None:
        from stream_gru.model.keras.network import build_network, load_weights
        from stream_gru.model.keras.spec import NetworkSpec

        super().__init__(bundle.manifest)
        weights = bundle.weights
        spec = NetworkSpec.from_manifest(bundle.manifest)
        self._model = build_network(spec, weights["scaling/mean"], weights["scaling/scale"], stateless=False)
        load_weights(self._model, weights)

    def step(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance B streams by one sample: ``(B, I), (B, S) -> (B, K), (B, S)``.  Raises ValueError."""
        self._check_step(x, h)
        if not len(x):
            return np.empty((0, self.output_size), np.float32), np.array(h)
        y, state = self._model.predict_on_batch([x[:, None], h])
        return np.array(y[:, 0]), np.array(state)

    def scan(self, x: F32, h: F32) -> tuple[F32, F32]:
        """Advance one stream by T samples: ``(T, I), (S,) -> (T, K), (S,)``.  Raises ValueError."""
        self._check_scan(x, h)
        if not len(x):
            return np.empty((0, self.output_size), np.float32), np.array(h)
        y, state = self._model.predict_on_batch([x[None], h[None]])
        return np.array(y[0]), np.array(state[0])
