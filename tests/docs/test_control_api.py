"""Commands to a running daemon by command line, HTTP and MQTT, as printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import walk
from tests.support.requirements import needs_mosquitto


@pytest.mark.servers
@needs_mosquitto
@pytest.mark.skipif(not shutil.which("mosquitto_sub"), reason="mosquitto-clients is not installed")
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_commands_work_as_printed(tmp_path: Path) -> None:
    """Each kind of request is answered."""
    out, _ = walk("docs/control-api.md", tmp_path)
    assert "Traceback" not in (tmp_path / "daemon.log").read_text()
    assert '"ok":true' in out
    assert '"uptime_s":' in out
    assert '"stream":"pump-1"' in out
    assert 'data: {"id":"pump-1/' in out
    assert json.loads((tmp_path / "answer.json").read_text())["ok"] is True
