"""From recordings to forecasts, as printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.pages import walk


def test_the_walk_from_recordings_to_forecasts_works_as_printed(tmp_path: Path) -> None:
    """From simulated recordings to a bundle, a replay and a daemon on standard input."""
    pytest.importorskip("tensorflow")
    walk("docs/train.md", tmp_path)
    assert len((tmp_path / "forecasts.jsonl").read_text().splitlines()) == 3600
    assert (tmp_path / "forecasts-live.jsonl").read_text()
