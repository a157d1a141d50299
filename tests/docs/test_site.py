"""The generated pages are current, links have targets, and the site builds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, REPOSITORY
from tests.support.paths import ROOT

OTHERS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "deploy/README.md", "deploy/RUNBOOK.md")
LINKED = {**PAGES, **{name: (ROOT / name).read_text() for name in OTHERS}}


def anchors(path: Path) -> set[str]:
    """The anchors that a repository browser makes of the headings of a page."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(LINKED))
def test_every_link_has_a_target(page: str) -> None:
    """A file of the repository, and a heading in it; absolute links into the repository too."""
    links = re.findall(r"\]\(([^)\s]+)\)", LINKED[page]) + re.findall(
        r"^\[[\w-]+\]: (\S+)$", LINKED[page], re.MULTILINE
    )
    for link in links:
        target, _, anchor = link.partition("#")
        if target.startswith(REPOSITORY):
            path = ROOT / target.removeprefix(REPOSITORY)
        elif "://" in target:
            continue
        else:
            path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_the_reference_pages_are_current(tmp_path: Path) -> None:
    """`make reference` would change nothing."""
    subprocess.run([sys.executable, str(ROOT / "docs" / "make_reference.py"), str(tmp_path)], check=True)
    for path in sorted(tmp_path.iterdir()):
        stored = ROOT / "docs" / "reference" / path.name
        assert stored.read_text() == path.read_text(), f"{stored} is stale: run make reference"
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (ROOT / "docs" / "reference").iterdir()}


def test_every_key_option_and_metric_has_a_meaning() -> None:
    """No row of a reference page ends in an empty cell."""
    pages = (PAGES[f"docs/reference/{name}.md"] for name in ("commands", "configuration", "metrics"))
    assert [line for page in pages for line in page.splitlines() if re.search(r"\|\s*\|$", line)] == []


def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: every page is in the navigation, every link and anchor resolves."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "reference" / "configuration" / "index.html").is_file()
