"""Programs and packages that a test needs; without them it is skipped, by name."""

from __future__ import annotations

import shutil
from importlib.util import find_spec

import pytest

MOSQUITTO = shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto") or ""
needs_mosquitto = pytest.mark.skipif(not MOSQUITTO, reason="mosquitto is not installed")
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
needs_litert = pytest.mark.skipif(find_spec("ai_edge_litert") is None, reason="ai_edge_litert is not installed")
needs_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


def need(program: str) -> str:
    """Return the path of a program of the system, or skip the test by its name."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found
