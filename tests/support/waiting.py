"""Waiting for something to become true, in place of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def wait_for(condition: Callable[[], _T], timeout_s: float = 20.0, what: str = "") -> _T:
    """Return the first true answer of ``condition``; fail when there is none in time."""
    end = time.monotonic() + timeout_s
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < end, f"waited {timeout_s} s for {what or condition}; last answer {answer!r}"
        time.sleep(0.01)
