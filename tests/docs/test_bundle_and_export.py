"""Exports and inspection, as printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import walk


def test_the_exports_work_as_printed(tmp_path: Path) -> None:
    """Files appear, and the explanation is printed."""
    pytest.importorskip("onnx")
    out, _ = walk("docs/bundle-and-export.md", tmp_path)
    assert {"pump.tflite", "pump.onnx", "pump.c"} <= {path.name for path in tmp_path.iterdir()}
    assert "reset gate" in out
