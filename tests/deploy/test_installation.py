from __future__ import annotations

import re
from pathlib import Path

from tests.deploy.support import DEPLOY, ROOT

README = (DEPLOY / "README.md").read_text()


def test_everything_that_is_shipped_is_in_the_list() -> None:
    """Each folder and file beside README.md stands in its table, and what stands there exists."""
    listed = set(re.findall(r"(?m)^\| `([^`]+)`", README))
    for entry in listed:
        assert (DEPLOY / entry).exists(), entry
    for path in DEPLOY.iterdir():
        if path.name not in ("README.md", "__pycache__"):
            assert any(entry.split("/")[0] == path.name for entry in listed), path


def test_what_is_copied_is_there() -> None:
    """Every file that the commands of the installation take from this repository exists."""
    sources = re.findall(r"(?m)^cp (?:-r )?(.+?) /etc/", README)
    assert len(sources) == 6
    for source in (Path(name) for line in sources for name in line.split()):
        assert (ROOT / source).exists(), source


def test_the_parts_speak_of_the_same_places() -> None:
    """Program, configuration and port are the same in the unit, the image, the scraping and the manual."""
    unit = (DEPLOY / "systemd" / "stream-gru.service").read_text()
    image = (DEPLOY / "docker" / "Dockerfile").read_text()
    for text in (unit, image, README):
        assert "/etc/stream-gru" in text
        assert "/var/lib/stream-gru" in text or text is README
    assert "/opt/stream-gru/bin/stream-gru" in unit
    assert "/opt/stream-gru/bin/stream-gru" in README
    assert "127.0.0.1:9723" in (DEPLOY / "prometheus" / "prometheus.yml").read_text()
