"""Simulated devices at real terminals and brokers, started from the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from stream_gru.cli.examples import simulate
from stream_gru.connectors.sources.serial import SerialSource, SerialSourceConfig
from stream_gru.examples.simulators.devices import PseudoTerminal, Sample, clean_pumps, clean_sines, play
from stream_gru.examples.simulators.recording import Recording
from stream_gru.examples.simulators.write import pump_recordings
from tests.support.brokers import Broker
from tests.support.network import free_port
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import assert_returns, wait_for


class Kept:
    """An output that stores the samples."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def send(self, sample: Sample) -> None:
        """Store it."""
        self.samples.append(sample)


@contextmanager
def simulation(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """``stream-gru simulate`` with these arguments, as a process."""
    command = [sys.executable, "-m", "stream_gru", "simulate", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def port_lines(port: str | Path, n: int) -> list[str]:
    """The next ``n`` lines behind a port, read as the daemon reads them."""
    source = SerialSource(SerialSourceConfig(port=str(port), format="jsonl"), name="port")
    source.open(None)
    lines: list[str] = []

    def enough() -> bool:
        lines.extend(message.payload.decode() for message in source.poll(n - len(lines), 0.1))
        return len(lines) == n

    wait_for(enough)
    source.close()
    return lines


def first_line(process: subprocess.Popen[str]) -> str:
    """The first line it prints."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def test_a_pump_on_a_port_is_read_as_json_lines(tmp_path: Path) -> None:
    """One line per sample, with time and counter; the name is printed and linked; Ctrl-C removes the link."""
    link = tmp_path / "sensor0"
    arguments = ("pump", "--serial", "--link", link, "--rate", "100", "--hours", "0.1", "--labels")
    with simulation(*arguments) as process:
        path = first_line(process)
        assert path == str(link.readlink())
        records = [json.loads(line) for line in port_lines(link, 20)]
        assert abs(records[-1]["ts"] - time.time()) < 10
        (pump,) = clean_pumps(0.1, 1, 1)
        for record in records:
            assert list(record) == ["ts", "seq", "flow", "pressure", "current", "vibration", "mode"]
            row = record["seq"] % len(pump)
            assert record["flow"] == pytest.approx(pump.values[row, 0], abs=0.006)
            assert pump.labels is not None
            assert record["mode"] == pump.labels[row]
        seqs = [record["seq"] for record in records]
        assert seqs == list(range(seqs[0], seqs[0] + 20))
        again = [json.loads(line)["seq"] for line in port_lines(path, 5)]  # a reader may return
        assert again[0] > seqs[-1]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "interrupted" in errors
        assert "Traceback" not in errors
        assert not link.is_symlink()


@pytest.mark.parametrize(
    ("form", "options", "expected"),
    [
        ("csv", ["--streams", "2"], r"\d+\.\d+,sine-[12],\d+,-?\d\.\d+"),
        ("csv", [], r"\d+\.\d+,\d+,-?\d\.\d+"),
        ("plotter", [], r"seq:\d+,x:-?\d\.\d+"),
        ("jsonl", ["--streams", "2"], r'\{"ts":\d+\.\d+,"stream":"sine-[12]","seq":\d+,"x":-?\d\.\d+\}'),
    ],
)
def test_forms_of_lines(form: str, options: list[str], expected: str) -> None:
    """Several devices behind one port are distinguished by name."""
    with simulation("sine", "--serial", "--format", form, "--rate", "200", *options) as process:
        for line in port_lines(first_line(process), 10):
            assert re.fullmatch(expected, line), line


def test_a_count_ends_it_after_everything_was_read() -> None:
    """The last line arrives, then the device is gone, with exit code 0 and the columns reported."""
    with simulation("sine", "--serial", "--count", "30", "--rate", "50", "--format", "csv") as process:
        lines = port_lines(first_line(process), 3)
        assert lines[0].count(",") == 2
        _, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "columns: ts,seq,x" in errors


def test_a_port_without_a_reader_loses_lines_and_does_not_block() -> None:
    """Whole lines are lost, the counter shows it, the lines that arrive are whole, and the simulation does not wait."""
    (sine,) = clean_sines(0.01, 1, 1)
    with PseudoTerminal("jsonl") as terminal:
        play([sine], terminal, count=2000, sleep=lambda _: None)
        assert 0 < terminal.lost < 2000
        reader = os.open(terminal.path, os.O_RDONLY | os.O_NONBLOCK)
        held = bytearray()

        def everything() -> bool:
            terminal.drain(0.0)  # the current line is finished as soon as there is space
            with suppress(BlockingIOError):
                held.extend(os.read(reader, 1_000_000))
            return held.count(b"\n") == 2000 - terminal.lost

        wait_for(everything)
        seen = [json.loads(line)["seq"] for line in held.splitlines()]
        assert seen == sorted(set(seen))
        assert len(seen) == 2000 - terminal.lost
        assert_returns(lambda: terminal.drain(3600.0))
        os.close(reader)


def test_a_link_replaces_a_link_and_nothing_else(tmp_path: Path) -> None:
    """A link left by a killed simulation is replaced; a file is not; another process's link is not removed."""
    link = tmp_path / "sensor0"
    link.symlink_to("/nowhere")
    with PseudoTerminal(link=link) as first:
        assert str(link.readlink()) == first.path
        with PseudoTerminal(link=link) as second:
            assert str(link.readlink()) == second.path
        assert not link.is_symlink()
    link.touch()
    with pytest.raises(FileExistsError):
        PseudoTerminal(link=link)


def test_samples_come_at_their_rate_and_a_sleeping_machine_does_not_make_up_for_it() -> None:
    """One tick for all devices, by default as recorded; after a pause the samples continue, at most a second behind."""
    now = [0.0]
    slept: list[float] = []

    def sleep(pause_s: float) -> None:
        slept.append(pause_s)
        now[0] += 100.0 if len(slept) == 4 else pause_s

    kept = Kept()
    recordings = clean_sines(2.5 / 3600, 1, 2)
    assert len(recordings[0]) == 2
    play(recordings, kept, count=6, clock=lambda: now[0], wall_ns=lambda: round(now[0] * 1e9), sleep=sleep)
    assert [(s.stream, s.seq) for s in kept.samples] == [(f"sine-{k}", n) for n in range(6) for k in (1, 2)]
    assert [s.time_ns // 10**9 for s in kept.samples[::2]] == [0, 1, 2, 102, 102, 102]
    assert kept.samples[0].values == kept.samples[4].values  # two rows, repeated
    kept = Kept()
    play(recordings, kept, count=3, rate_hz=4.0, clock=lambda: now[0], wall_ns=lambda: 0, sleep=sleep)
    assert slept[-2:] == [0.25, 0.25]


def test_live_pumps_are_the_recorded_ones_without_flaws() -> None:
    """The same seed and number give the same pump."""
    live: Recording = clean_pumps(0.05, 7, 2, first=3)[1]
    recorded = pump_recordings(0.05, 7, 1, first=4)[0]
    assert live.stream_id == recorded.stream_id == "pump-4"
    same = [value in live.values[:, 0] for value in recorded.values[:, 0].tolist() if value == value]
    assert same
    assert all(same)


@pytest.mark.servers
@needs_mosquitto
def test_samples_reach_a_broker(tmp_path: Path) -> None:
    """Each sample of each device once, on its topic, acknowledged before the command ends."""
    with Broker(tmp_path) as broker, broker.client() as peer:
        peer.subscribe("sensors/+/data")
        with simulation("pump", "--mqtt", broker.url, "--pumps", "3", "--count", "40", "--rate", "400") as process:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
        wait_for(lambda: len(peer.heard) == 120)
        for number in (1, 2, 3):
            records = [json.loads(payload) for payload in peer.payloads(f"sensors/pump-{number}/data")]
            assert [record["seq"] for record in records] == list(range(40))
            assert list(records[0]) == ["ts", "seq", "flow", "pressure", "current", "vibration"]


@pytest.mark.servers
@needs_mosquitto
def test_a_restarted_broker_gets_the_queued_samples(tmp_path: Path) -> None:
    """The simulation continues while the broker restarts, and ends without an error."""
    arguments = ("--streams", "1", "--count", "150", "--rate", "50")
    with Broker(tmp_path) as broker, simulation("sine", "--mqtt", broker.url, *arguments) as process:
        with broker.client() as peer:
            peer.subscribe("sensors/#")
            wait_for(lambda: len(peer.heard) > 5)
        broker.stop()
        broker.start()
        with broker.client() as peer:
            peer.subscribe("sensors/#")
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            assert "lost" not in errors
            wait_for(lambda: any(json.loads(payload)["seq"] == 149 for payload in peer.payloads()))


def test_a_missing_broker_is_an_error() -> None:
    """One line and exit code 1."""
    url = f"mqtt://127.0.0.1:{free_port()}"
    with simulation("sine", "--mqtt", url, "--count", "1") as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert f"{url}: Connection refused" in errors
        assert "Traceback" not in errors


@pytest.mark.servers
@needs_mosquitto
def test_a_refusal_by_the_broker_is_an_error(tmp_path: Path) -> None:
    """The broker's reason and exit code 1."""
    with (
        Broker(tmp_path, users={"u": "p"}) as broker,
        simulation("sine", "--mqtt", broker.url, "--count", "1") as process,
    ):
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Not authorized" in errors


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sine", "expected one of --out FOLDER, --serial and --mqtt URL"),
        ("sine --out x --serial", "expected one of --out FOLDER, --serial and --mqtt URL"),
        ("pump --serial --gzip", "--gzip cannot be used with --serial"),
        ("pump --out x --rate 5", "--rate cannot be used with --out"),
        ("pump --mqtt mqtt://h --link x", "--link cannot be used with --mqtt"),
        ("sine --serial --topic x", "--topic cannot be used with --serial"),
        ("sine --mqtt http://h", "expected an address such as mqtt://127.0.0.1:1883, got 'http://h'"),
        ("sine --mqtt mqtt://h --topic x", "--topic: expected {stream} in the topic"),
        ("sine --streams 1 --mqtt mqtt://h --topic x/#", "--topic: expected a topic without + and #, got 'x/#'"),
        ("sine --serial --format plotter --streams 2", "--format plotter needs a single device"),
        ("sine --serial --hours 0.0001", "--hours: expected time for at least one sample"),
    ],
)
def test_incompatible_options_are_errors(line: str, expected: str) -> None:
    """Nothing starts, exit code 2."""
    done = CliRunner().invoke(simulate, line.split())
    assert done.exit_code == 2
    assert expected in " ".join(done.output.replace("│", "").split())
