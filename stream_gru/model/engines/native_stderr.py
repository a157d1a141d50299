"""Keep native libraries' chatter off the user's terminal, and show it when something goes wrong."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def suppress_native_stderr() -> Iterator[None]:
    """Hold back what is written to file descriptor 2; write it out after all when the block raises.

    For the moments in which native code talks: it knows no Python stream, and LiteRT offers no switch.  The whole
    process is held back, so a block must be short or run where nothing else writes.
    """
    try:
        saved = os.dup(2)
    except OSError:  # there is no stderr, so nothing to keep quiet
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
