"""Commands that train load what only the training extra has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stream_gru.engines.quiet import quiet_stderr
from stream_gru.extras import needs_extra


@contextmanager
def training_extra() -> Iterator[None]:
    """Around the imports of such a command: TensorFlow's chatter is kept back, a missing package is a ConfigError."""
    with needs_extra("training", "train"), quiet_stderr():
        yield
