"""States are inspected and moved, as printed."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.pages import walk


def test_the_walk_through_states_works_as_printed(tmp_path: Path) -> None:
    """Run, listed, shown, moved to another gateway, reset."""
    out, err = walk("docs/delivery.md", tmp_path)
    assert re.search(r"^pump-7 +2026-\S+ +\d+  stored$", out, re.MULTILINE), out
    assert "1 streams imported" in err
