"""Paths of the repository that tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "stream_gru"
SAMPLE_DATA = ROOT / "sample_data"
BUNDLE = SAMPLE_DATA / "pump.bundle"
HELD_OUT = SAMPLE_DATA / "held_out" / "pumps.csv.gz"
CASES = ROOT / "tests" / "cases"
