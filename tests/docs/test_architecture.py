"""The architecture page is correct: its packages are those of the import test, its call lists those of a real run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.docs.pages import PAGES
from tests.support.brokers import Broker
from tests.support.daemons import BEGIN_S, CHANNELS, mqtt_config
from tests.support.network import free_port
from tests.support.paths import BUNDLE, HELD_OUT, PACKAGE
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

PAGE = PAGES["docs/contributing/architecture.md"]
STEP = re.compile(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", re.MULTILINE)


def walk_functions(walk: str) -> list[str]:
    """The functions of a call list, with their names in a trace."""
    section = PAGE.partition(f"### {walk}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    found = [" ".join(step) for step in STEP.findall(section)]
    assert len(found) > 5, walk
    return found


def missing_from(calls: list[str], walk: str) -> list[str]:
    """The steps of a call list, from the first one that the calls lack, in this order."""
    rest = walk_functions(walk)
    for call in calls:
        if rest and call == rest[0]:
            rest = rest[1:]
    return rest


def traced(out: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A command in its own process, whose calls are written to ``out`` at its end."""
    log = out.with_suffix(".log").open("wb")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.docs.call_trace", str(out), *arguments], stdout=log, stderr=log
        )


def subscribed(port: int) -> bool:
    """Whether the source of the daemon is subscribed: the broker queues nothing for it before."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return b'stream_gru_source_connected{source="mqtt"} 1.0' in answer.read()
    except OSError:
        return False


def test_the_rooms_are_those_of_the_package() -> None:
    """The table names each top-level folder of the package, and no other."""
    section = PAGE.partition("## Rooms\n")[2].partition("\n## ")[0]
    rooms = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert set(re.findall(r"^\| `(\w+)/` \|", section, re.MULTILINE)) == rooms


def test_the_walk_of_a_csv_row_is_what_a_replay_calls(tmp_path: Path) -> None:
    """Each function in this order."""
    out = tmp_path / "calls"
    command = traced(
        out, "replay", str(BUNDLE), str(HELD_OUT), "--out", str(tmp_path / "out.jsonl"), "--engine", "numpy"
    )
    assert command.wait(120) == 0, out.with_suffix(".log").read_text()
    assert missing_from(out.read_text().splitlines(), "A CSV row") == []


@pytest.mark.servers
@needs_mosquitto
def test_the_walks_of_a_message_and_of_a_command_are_what_a_daemon_calls(tmp_path: Path) -> None:
    """Each function in this order, from the arrival of a message to the publish of its output."""
    out, config, token = tmp_path / "calls", tmp_path / "gateway.toml", tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    port = free_port()
    with Broker(tmp_path) as broker, broker.client() as client:
        text = mqtt_config(broker.url, run=f'state_dir = "{tmp_path}/state"\nengine = "numpy"\n')
        text = text.replace("127.0.0.1:0", f"127.0.0.1:{port}")
        config.write_text(f'{text}\n[control]\ntoken_file = "{token}"\n')
        client.subscribe("stream_gru/+/prediction")
        daemon = traced(out, "run", str(config))
        wait_for(lambda: subscribed(port), timeout_s=60, what="the subscription")
        for second in range(3):
            record = {"ts": BEGIN_S + second, **dict.fromkeys(CHANNELS, 1.0)}
            client.publish("sensors/pump-1/data", json.dumps(record))
            wait_for(lambda: len(client.payloads("stream_gru/pump-1/prediction")) > second, what="an output")  # noqa: B023
        reset = [sys.executable, "-m", "stream_gru", "reset", str(config), "--stream", "pump-1"]
        subprocess.run(reset, check=True, capture_output=True)
        daemon.terminate()
        assert daemon.wait(60) == 0, out.with_suffix(".log").read_text()
    calls = out.read_text().splitlines()
    assert missing_from(calls, "An MQTT message") == []
    assert missing_from(calls, "A command") == []
