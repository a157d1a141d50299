"""`replay CONFIG FILE` gives the output of the configuration's daemon, rejections and evictions included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stream_gru.connectors.sources.message_log import MessageLogWriter
from stream_gru.core.types import Position, RawMessage
from stream_gru.runtime.daemon import Daemon
from stream_gru.runtime.resolved_config import resolve_file
from stream_gru.runtime.run_summary import RunSummary
from stream_gru.runtime.wiring import build_runtime, build_store
from tests.support.fake_connectors import ListSource
from tests.support.paths import BUNDLE

STREAMS, TURNS = 5, 12
CONFIG = f"""
[run]
bundle = "{BUNDLE}"
state_dir = "state"
{{run}}
commit_every = 3

[[source]]
type = "stdin"
name = "plant"
format = "jsonl"

[source.input]
time = "ts"
time_unit = "s"
stream = "id"
{{source}}

[[sink]]
type = "file"
path = "daemon.jsonl"

[metrics]
enabled = false
{{more}}
"""
CASES = {
    "limits": ("", "", "[limits]\ntotal_hz = 4\nper_stream_hz = 1\n"),
    "reject": ("max_streams = 2", "", ""),
    "evict": ('max_streams = 2\nmax_streams_policy = "evict"\nmax_stored_streams = 4', "", ""),
    "evict all": ('max_streams = 2\nmax_streams_policy = "evict"', 'device_seq = "n"', "[limits]\ntotal_hz = 7\n"),
}


@pytest.mark.parametrize(("streams", "warned"), [(1000, False), (50_000, True)])
def test_states_that_need_much_memory_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, streams: int, warned: bool
) -> None:
    """50,000 rows of 2.1 kB are more than a small gateway has to spare."""
    path = tmp_path / "gateway.toml"
    path.write_text(CONFIG.format(run=f"max_streams = {streams}", source="", more=""))
    build_runtime(resolve_file(path))
    assert ("streams of 2.1 kB each can take 105 MB of memory" in caplog.text) == warned


def messages() -> list[RawMessage]:
    """Records of five streams in turn, ten a second by arrival; every seventh one is invalid."""
    found = []
    for number in range(STREAMS * TURNS):
        record = {"ts": 1_772_323_200 + number // STREAMS, "id": f"pump-{number % STREAMS}", "n": number // STREAMS}
        record |= {"flow": 100.0 + number % 7, "pressure": 300.0, "current": 5.0, "vibration": 1.5}
        payload = b"oops" if number % 7 == 6 else json.dumps(record).encode()
        arrival_ns = 1_772_323_200 * 10**9 + number * 10**8
        found.append(RawMessage(payload, "", b"", arrival_ns, Position("plant", number + 1), source="plant"))
    return found


def run_daemon(config: Path) -> RunSummary:
    """The output of a configuration's daemon for the messages, one or a few at a time."""
    resolved = resolve_file(config)
    runtime = build_runtime(resolved, store=build_store(resolved))
    items = messages()
    runtime.inputs[0].source = ListSource([items[0], *[items[i : i + 4] for i in range(1, len(items), 4)]])
    return Daemon(runtime).run()


@pytest.mark.parametrize("case", CASES)
def test_a_replay_of_the_messages_equals_the_daemon(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows, byte for byte, and the same drop counts, with limits and eviction."""
    monkeypatch.chdir(tmp_path)
    run, source, more = CASES[case]
    Path("gateway.toml").write_text(CONFIG.format(run=run, source=source, more=more))
    Path("state").mkdir()
    with MessageLogWriter(Path("messages.jsonl")) as writer:
        writer.write(messages())
    daemon = run_daemon(Path("gateway.toml"))
    command = [sys.executable, "-m", "stream_gru", "replay", "gateway.toml", "messages.jsonl", "--json"]
    replay = subprocess.run([*command, "--out", "replay.jsonl"], capture_output=True, text=True, check=True)
    summary = json.loads(replay.stderr.splitlines()[-1])
    assert Path("replay.jsonl").read_bytes() == Path("daemon.jsonl").read_bytes()
    assert (summary["samples"], summary["applied"]) == (daemon.received, daemon.applied)
    assert summary["dropped"] == dict(daemon.dropped)
    assert 0 < daemon.applied < daemon.received
