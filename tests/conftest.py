"""Settings of all tests."""

from __future__ import annotations

import signal

from hypothesis import settings

# The time of one example is meaningless on a machine under other load.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")


def pytest_configure() -> None:
    """Enable Ctrl-C in child processes: a shell that runs the tests in the background makes them ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
