"""A recipe, as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import walk


def test_the_walk_through_a_recipe_works_as_printed(tmp_path: Path) -> None:
    """Trained, explained, generated from, exported: every line of the page."""
    pytest.importorskip("tensorflow")
    printed, _ = walk("docs/recipes.md", tmp_path)
    assert "test accuracy" in printed
    assert re.search(r"^[aeiou]{60}$|ouu[aeiou]{57,}", printed, re.MULTILINE), printed
    assert (tmp_path / "vowels.onnx").exists()
    assert (tmp_path / "vowels-int8.tflite.json").exists()
