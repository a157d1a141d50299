"""The first page is short, and its live example works as printed."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, REPOSITORY, walk
from tests.support.paths import ROOT
from tests.support.requirements import needs_mosquitto

README = PAGES["README.md"]


def test_it_has_at_most_200_lines() -> None:
    """A newcomer reads all of it."""
    assert len(README.splitlines()) <= 200


def test_its_links_and_its_picture_work_on_a_package_index_too() -> None:
    """Every target is absolute; the picture is a file of the repository."""
    targets = re.findall(r"\]\(([^)]+)\)", README) + re.findall(r"^\[\w+\]: (\S+)$", README, re.MULTILINE)
    assert len(targets) > 20
    assert [target for target in targets if not target.startswith("https://")] == []
    (picture,) = re.findall(r"!\[[^\]]+\]\((\S+)\)", README)
    raw = REPOSITORY.replace("github.com", "raw.githubusercontent.com").replace("/blob", "")
    assert (ROOT / picture.removeprefix(raw)).is_file()


@pytest.mark.servers
@needs_mosquitto
@pytest.mark.skipif(not shutil.which("mosquitto_sub"), reason="mosquitto-clients is not installed")
def test_the_live_example_works_as_printed(tmp_path: Path) -> None:
    """Broker, devices, daemon, tap, subscriber, end."""
    out, _ = walk("README.md", tmp_path)
    assert out.count('{"id":"pump-') >= 6
    assert re.search(r"^stream_gru/(status online|pump-\d/)", out, re.MULTILINE)
    assert (tmp_path / "live.jsonl").read_text()
    assert "Traceback" not in (tmp_path / "daemon.log").read_text()
