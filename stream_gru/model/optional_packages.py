"""Packages that only an extra of this one brings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from stream_gru.core.errors import ConfigError
from stream_gru.model.engines.native_stderr import suppress_native_stderr


@contextmanager
def require_extra(what: str, extra: str = "") -> Iterator[None]:
    """Around what imports such packages: ``what`` needs them, ``extra`` brings them; a missing one is a ConfigError.

    TensorFlow, which may be among them, is asked to say less.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("stream_gru"):
            raise  # a fault of ours, not a missing package
        install = f"stream-gru[{extra}]" if extra else "stream-gru"
        raise ConfigError(
            f"{what} needs a package that is not installed ({error.name or error}): pip install '{install}'"
        ) from error


@contextmanager
def require_training_extra() -> Iterator[None]:
    """Wrap the imports of a command that trains: hides TensorFlow's start-up messages on stderr.

    Raises ConfigError when the [train] extra is not installed.
    """
    with require_extra("training", "train"), suppress_native_stderr():
        yield
