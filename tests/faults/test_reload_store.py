"""SIGHUP and SIGTERM with a store, without a broker: what a failed commit ends, and what survives the change."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.daemons import CHANNELS, Running, pump_records
from tests.support.network import free_port
from tests.support.paths import BUNDLE
from tests.support.stores import opened
from tests.support.waiting import wait_for

_CONFIG = """
[run]
bundle = "{bundle}"
engine = "numpy"
state_dir = "state"
{run}

[[source]]
type = "stdin"
format = "jsonl"
{source}

[[sink]]
type = "file"
path = "out.jsonl"

[metrics]
listen = "127.0.0.1:0"
"""
_INPUT = '[source.input]\nstream = "pump"\ntime = "ts"\ntime_unit = "s"'
_REPLAY = '[[source]]\ntype = "replay"\nfiles = ["{file}"]\n{more}\n' + _INPUT + "\n"
_RARELY = "commit_interval_s = 1000.0\ncommit_every = 1000000"
_LIMITS = "\n[limits]\ntotal_hz = 1000000.0\n"


def config_text(*, run: str = "commit_interval_s = 0.1", source: str = _INPUT, more: str = "") -> str:
    """A daemon from standard input to a file; ``source``, ``more``: lines of its table, and other tables."""
    return _CONFIG.format(bundle=BUNDLE, run=run, source=source) + more


def config_in(folder: Path, text: str) -> Path:
    """The configuration in a folder of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "gateway.toml").write_text(text)
    return folder / "gateway.toml"


def full_records(samples: int, stream: str = "dev-0") -> list[str]:
    """Records with all channels."""
    return [json.dumps({"pump": stream, **row}) for row in pump_records(1, samples)["dev-0"]]


def halves(samples: int) -> list[str]:
    """Two records per time, each with half of the channels."""
    lines = []
    for row in pump_records(1, samples)["dev-0"]:
        for names in (CHANNELS[:2], CHANNELS[2:]):
            lines.append(json.dumps({"pump": "dev-0", "ts": row["ts"], **{name: row[name] for name in names}}))
    return lines


def fed(daemon: Running, lines: list[str], total: int, of: str = "samples_received") -> None:
    """Feed lines, and wait until this many samples, or records of another kind, are processed in all."""
    daemon.feed(*lines)
    wait_for(lambda: daemon.metric(f'stream_gru_{of}_total{{source="stdin"}}') == total, what="all lines")


def reloaded(daemon: Running, text: str) -> None:
    """Reload with another configuration."""
    daemon.config.write_text(text)
    done = (daemon.metric('stream_gru_reloads_total{result="ok"}') or 0) + 1
    daemon.hang_up()
    wait_for(lambda: daemon.metric('stream_gru_reloads_total{result="ok"}') == done, what="the reload")


def ended(daemon: Running) -> str:
    """End its input, check for a clean exit, and return its output."""
    assert daemon.process.stdin is not None
    daemon.process.stdin.close()
    assert daemon.process.wait(30) == 0, daemon.text()
    return daemon.text()


def uninterrupted_output(folder: Path, text: str, lines: list[str]) -> bytes:
    """The output of a daemon that runs undisturbed."""
    config = config_in(folder, text.replace('listen = "127.0.0.1:0"', "enabled = false"))
    command = [sys.executable, "-m", "stream_gru", "run", str(config)]
    done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "out.jsonl").read_bytes()


def written_outputs(folder: Path) -> list[dict[str, object]]:
    """The whole lines of output written so far."""
    path = folder / "out.jsonl"
    data = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


# ---- a commit that fails


@pytest.mark.parametrize(("samples", "limit"), [(3, 2000), (2, 4096)], ids=["sink", "store"])
def test_a_commit_that_fails_before_a_reload_ends_the_daemon(
    samples: int, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at any other time: exit 1, nothing is acknowledged, no "not taken" in the log; the next start recovers
    everything.
    """
    for name in [name for name in os.environ if name.startswith("COVERAGE_PROCESS")]:
        monkeypatch.delenv(name)  # otherwise its output would hit the full disk too
    lines = full_records(samples)
    expected = uninterrupted_output(tmp_path / "other", config_text(), lines)
    assert len(expected) < 4096  # they wait for the commit before they are written
    assert (len(expected) > limit) == (samples == 3)  # otherwise only a page of the store is too long
    config = config_in(tmp_path / "own", config_text(run=_RARELY))
    with Running(config, fed=True) as daemon:
        fed(daemon, lines, samples)
        # A file-size limit: to the daemon this is a full disk.
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (limit, limit))
        daemon.hang_up()
        assert daemon.process.wait(30) == 1, daemon.text()
        assert "not taken" not in daemon.text()
    with opened(config.parent / "state") as store:
        assert (store.positions(), store.names()) == ({}, [])
    config.write_text(config_text())
    with Running(config, fed=True) as daemon:
        fed(daemon, lines, samples)
        ended(daemon)
    assert (config.parent / "out.jsonl").read_bytes() == expected


# ---- what outlives a reload


def test_a_recording_continues_unless_it_is_another(tmp_path: Path) -> None:
    """Another key of its table writes nothing twice; other files are read from the start."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(full_records(300, name)) + "\n")
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    config = config_in(tmp_path, config_text(more=_REPLAY.format(file=one, more="")))
    with Running(config, fed=True) as daemon:
        wait_for(lambda: len(written_outputs(tmp_path)) == 300, what="the recording")
        reloaded(daemon, config_text(more=_REPLAY.format(file=one, more="queue_size = 500")))
        fed(daemon, full_records(2), 2)
        wait_for(lambda: len(written_outputs(tmp_path)) > 301, what="the rows of the device")
        assert [row["stream"] for row in written_outputs(tmp_path)[300:]] == ["dev-0"] * 2
        assert daemon.metric('stream_gru_samples_received_total{source="replay"}') == 300
        reloaded(daemon, config_text(more=_REPLAY.format(file=two, more="queue_size = 500")))
        wait_for(lambda: len(written_outputs(tmp_path)) == 602, what="the other recording")
        ended(daemon)
    assert [row["stream"] for row in written_outputs(tmp_path)[302:]] == ["two"] * 300


def test_a_reload_keeps_clocks_and_counters_of_devices(tmp_path: Path) -> None:
    """[limits] change: samples missing over the reload are counted, and time differences are as before."""
    lines = []
    for number, line in enumerate(full_records(10)):
        row = {**json.loads(line), "ts": 1000 + number, "n": number}
        lines.append(json.dumps(row))
    del lines[5:7]
    text = config_text(source=_INPUT + '\nclock = "boot"\ndevice_seq = "n"')
    config = config_in(tmp_path, text)
    with Running(config, fed=True) as daemon:
        fed(daemon, lines[:5], 5)
        reloaded(daemon, text + _LIMITS)
        fed(daemon, lines[5:], 8)
        assert daemon.metric('stream_gru_device_seq_missing_total{source="stdin"}') == 2
        ended(daemon)
    times = [datetime.fromisoformat(str(row["time"])).astimezone(UTC) for row in written_outputs(tmp_path)]
    assert [round((time - times[0]).total_seconds()) for time in times] == [0, 1, 2, 3, 4, 7, 8, 9]
    assert len({time.microsecond for time in times}) == 1


def test_a_reload_with_other_limits_of_streams_keeps_pending_records(tmp_path: Path) -> None:
    """A record half before it and half after it is one sample."""
    lines, text = halves(20), config_text(source="join_channels = true\n" + _INPUT)
    expected = uninterrupted_output(tmp_path / "other", text, lines)
    config = config_in(tmp_path / "own", text)
    with Running(config, fed=True) as daemon:
        fed(daemon, lines[:21], 21, "records_joined")
        reloaded(
            daemon,
            config_text(run="commit_interval_s = 0.1\nmax_streams = 2000", source="join_channels = true\n" + _INPUT),
        )
        fed(daemon, lines[21:], 40, "records_joined")
        ended(daemon)
    assert len(expected.splitlines()) == 20
    assert (config.parent / "out.jsonl").read_bytes() == expected


# ---- the end of one daemon, the start of another


def term(daemon: Running) -> None:
    """A requested stop."""
    daemon.stop()


def kill_daemon(daemon: Running) -> None:
    """A kill."""
    daemon.process.kill()
    daemon.process.wait()


@pytest.mark.parametrize("stop", [term, kill_daemon])
def test_what_waits_for_a_source_that_lives_outlives_one_that_ended(
    stop: Callable[[Running], None], tmp_path: Path
) -> None:
    """A recording at its end does not emit incomplete records that standard input completes after the next start."""
    (tmp_path / "other").mkdir()
    recording = tmp_path / "recording.jsonl"
    recording.write_text("\n".join(full_records(3, "recorded")) + "\n")
    lines = halves(20)
    assembled = "join_channels = true"
    more = _REPLAY.format(file=recording, more=assembled)
    text = config_text(source=f"{assembled}\n{_INPUT}", more=more)
    expected = uninterrupted_output(tmp_path / "other", text, lines)
    config = config_in(tmp_path / "own", text)
    with Running(config, fed=True) as daemon:
        series = 'stream_gru_records_joined_total{source="replay"}'
        wait_for(lambda: daemon.metric(series) == 3, what="the recording")
        fed(daemon, lines[:21], 21, "records_joined")
        stop(daemon)
    with Running(config, fed=True) as daemon:
        daemon.feed(*lines)
        ended(daemon)
    assert sorted((config.parent / "out.jsonl").read_bytes().splitlines()) == sorted(expected.splitlines())
    assert len(expected.splitlines()) == 23


def test_the_error_of_a_second_instance_names_the_owner_of_the_state(tmp_path: Path) -> None:
    """The error names the process that holds the state, not the address in use that results from it."""
    text = config_text().replace(":0", f":{free_port()}")
    config = config_in(tmp_path, text)
    with Running(config, fed=True) as daemon:
        fed(daemon, full_records(1), 1)
        command = [sys.executable, "-m", "stream_gru", "run", str(config)]
        second = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        assert second.returncode == 1, second.stderr
        assert f"process {daemon.process.pid}" in second.stderr
        assert "uses this state" in second.stderr
        ended(daemon)


def test_a_hang_up_during_the_start_is_kept(tmp_path: Path) -> None:
    """The daemon reloads once it runs, since the configuration may have changed after it was read."""
    config = config_in(tmp_path / "run", config_text())
    daemon = Running(config, fed=True)

    def blocked() -> bool:
        """Whether the process has begun to keep signals."""
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        mask = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk"))
        return bool(mask >> (signal.SIGHUP - 1) & 1)

    def hung_up() -> bool:
        if blocked():
            daemon.hang_up()
            return True
        return False

    daemon.ready_after = hung_up
    with daemon:
        wait_for(lambda: daemon.metric('stream_gru_reloads_total{result="ok"}') == 2, what="the reload")
        ended(daemon)
