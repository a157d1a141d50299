"""Waiting for a condition instead of sleeping; and calls that must return."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def wait_for(condition: Callable[[], _T], timeout_s: float = 20.0, what: str = "") -> _T:
    """Return the first true result of ``condition``; fail when there is none in time."""
    end = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < end, f"waited {timeout_s} s for {what or condition}; last answer {answer!r}"
        time.sleep(0.01)


def assert_returns(call: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Run ``call`` in a thread; fail when it does not return."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout_s)
    assert not thread.is_alive(), f"{call} has not returned within {timeout_s} s"
