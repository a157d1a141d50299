"""Optional packages: which extra brings a missing one, and native libraries that write to the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from stream_gru.core.errors import ConfigError


@contextmanager
def require_extra(what: str, extra: str = "") -> Iterator[None]:
    """Wrap the imports that ``what`` needs; ``extra`` is the extra of this package that installs them.

    Raises ConfigError with the command to run when a package is missing.  Sets TensorFlow's log level to errors.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        yield
    except ImportError as error:
        if (error.name or "").startswith("stream_gru"):
            raise  # an error in this package, not a missing one
        install = f"stream-gru[{extra}]" if extra else "stream-gru"
        raise ConfigError(
            f"{what} needs a package that is not installed ({error.name or error}): pip install '{install}'"
        ) from error


@contextmanager
def require_training_extra() -> Iterator[None]:
    """Wrap the imports of a command that trains, without TensorFlow's start-up messages.

    Raises ConfigError when the extra "train" is not installed.
    """
    with require_extra("training", "train"), suppress_native_stderr():
        yield


@contextmanager
def suppress_native_stderr() -> Iterator[None]:
    """Discard what is written to file descriptor 2, unless the block raises: then write it after all.

    For native libraries such as LiteRT, which bypass ``sys.stderr`` and have no switch for it.  It applies to the whole
    process, so keep the block short or run it where nothing else writes.
    """
    try:
        saved = os.dup(2)
    except OSError:  # the process has no stderr
        yield
        return
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException:
            captured.seek(0)
            os.write(saved, captured.read())
            raise
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
