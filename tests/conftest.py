"""What holds for all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# The time of one example says nothing on a machine that others use too.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_configure() -> None:
    """Let Ctrl-C work in what the tests start: a shell that runs the tests in the background has them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
