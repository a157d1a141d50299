"""The test part as Keras alone answers it: whole sequences in one batch, through the saved model."""

from __future__ import annotations

from time import perf_counter

import keras
import numpy as np

from stream_gru.core.types import F32
from stream_gru.model.bundle import KERAS, Bundle
from stream_gru.pipeline.conditioning.gap_filling import Steps
from stream_gru.training.splits import stretches


def batch_answers(bundle: Bundle, steps: Steps, batch_size: int) -> tuple[F32, float]:
    """Outputs (T, K) of each step by ``model.predict``, and the seconds it took; sequences begin where states do.

    Shorter sequences are padded behind their end, which no output before it can see.
    """
    model = keras.models.load_model(bundle.path / KERAS)
    length = np.array([part.stop - part.start for part in stretches(steps)])
    x = np.zeros((len(length), int(length.max()), steps.x.shape[1]), np.float32)
    inside = np.arange(x.shape[1]) < length[:, None]
    x[inside] = steps.x  # sequences lie end to end
    model.predict(x[:batch_size], batch_size=batch_size, verbose=0)  # the graph is drawn here
    begin = perf_counter()
    y = model.predict(x, batch_size=batch_size, verbose=0)
    seconds = perf_counter() - begin
    return np.asarray(y, np.float32)[inside], seconds
