"""Commands that train load what only the training extra has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from stream_gru.engines.quiet import quiet_stderr
from stream_gru.errors import ConfigError


@contextmanager
def training_extra() -> Iterator[None]:
    """Around the imports of such a command: TensorFlow's chatter is kept back, a missing package is a ConfigError."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with quiet_stderr():
            yield
    except ImportError as error:
        if (error.name or "").startswith("stream_gru"):
            raise  # a fault of ours, not a missing package
        raise ConfigError(
            f"training needs a package that is not installed ({error.name}): pip install 'stream-gru[train]'"
        ) from error
