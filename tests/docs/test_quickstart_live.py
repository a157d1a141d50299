"""The live quick start works as printed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.docs.pages import walk
from tests.support.requirements import needs_mosquitto


@pytest.mark.servers
@needs_mosquitto
@pytest.mark.skipif(not shutil.which("mosquitto_sub"), reason="mosquitto-clients is not installed")
@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_live_quick_start_works_as_printed(tmp_path: Path) -> None:
    """Broker, devices, daemon, tap, commands, recording, reload, serial port."""
    out, _ = walk("docs/quickstart-live.md", tmp_path)
    log = (tmp_path / "daemon.log").read_text()
    assert "Traceback" not in log
    assert out.count('{"id":"pump-') >= 6
    assert 'stream_gru_commands_total{action="reset",result="ok"} 1.0' in out
    live, replayed = ((tmp_path / name).read_text().splitlines() for name in ("live.jsonl", "replayed.jsonl"))
    assert live
    assert replayed
    assert "configuration applied" in log
