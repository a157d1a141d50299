"""End to end: device, serial port, daemon, file, with real pseudo-terminals and a real daemon."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.support.daemons import Running, pump_records, replayed
from tests.support.paths import BUNDLE
from tests.support.serial_devices import SerialDevice
from tests.support.waiting import wait_for

SOURCE = """
[[source]]
type = "serial"
name = "{name}"
port = "{port}"
format = "json"
stream = "{stream}"
reconnect_max_delay_s = 0.2

[source.input]
time = "ts"
time_unit = "s"
device_seq = "seq"
"""
REST = """
[run]
bundle = "{bundle}"
stream_idle_timeout_s = 3600.0

[[sink]]
type = "file"
path = "{folder}/out.jsonl"

[metrics]
listen = "127.0.0.1:0"
"""


def serial_config(folder: Path, devices: dict[str, SerialDevice]) -> Path:
    """A configuration with one source per device; the stream has the device's name."""
    path = folder / "gateway.toml"
    sources = [SOURCE.format(name=f"port-{name}", port=device.link, stream=name) for name, device in devices.items()]
    path.write_text(REST.format(bundle=BUNDLE, folder=folder) + "".join(sources))
    return path


def device_lines(rows: list[dict[str, float]]) -> list[bytes]:
    """Records as a device writes them, with a sequence counter."""
    return [json.dumps({**row, "seq": number}).encode() + b"\r\n" for number, row in enumerate(rows)]


def serial_outputs(folder: Path) -> list[bytes]:
    """The rows written so far, without the counter, which a replay does not have."""
    path = folder / "out.jsonl"
    rows = path.read_bytes().splitlines() if path.exists() else []
    return [row.split(b',"seq":')[0] + b',"' + row.split(b',"seq":')[1].partition(b',"')[2] for row in rows]


def ports_open(daemon: Running, *names: str) -> bool:
    """Whether the daemon has opened the ports of these devices."""
    return all(daemon.metric(f'stream_gru_source_connected{{source="port-{name}"}}') == 1 for name in names)


def in_pieces(data: bytes, seed: int) -> list[bytes]:
    """The bytes in chunks cut at random places."""
    draw, pieces, at = random.Random(seed), [], 0
    while at < len(data):
        size = draw.choice([1, 7, 50, 400])
        pieces.append(data[at : at + size])
        at += size
    return pieces


def test_two_ports_equal_a_replay(tmp_path: Path) -> None:
    """Lines in pieces over two ports at once give, byte for byte, the rows of the replay of the same samples."""
    records = pump_records(2, 1500)
    expected = replayed(records, tmp_path)
    with SerialDevice(tmp_path / "dev-0") as one, SerialDevice(tmp_path / "dev-1") as two:
        devices = {"dev-0": one, "dev-1": two}
        with Running(serial_config(tmp_path, devices)) as daemon:
            wait_for(lambda: ports_open(daemon, *devices), what="the ports to be open")
            for device in devices.values():
                device.send(b'0, "cut": 1}\r\n')  # the end of a line that started before the port was opened
            left = {name: in_pieces(b"".join(device_lines(rows)), 1) for name, rows in records.items()}
            while any(left.values()):
                for name, device in devices.items():
                    if left[name]:
                        device.send(left[name].pop(0))
            wait_for(lambda: len(serial_outputs(tmp_path)) >= 3000, timeout_s=60, what="all outputs")
            daemon.stop()
    assert sorted(serial_outputs(tmp_path)) == expected


def test_a_port_that_is_unplugged_and_plugged_again_loses_no_state(tmp_path: Path) -> None:
    """After the device returns, the stream continues: steps count on and nothing is reset."""
    rows = pump_records(1, 400)["dev-0"]
    expected = replayed({"dev-0": rows}, tmp_path)
    lines = device_lines(rows)
    with SerialDevice(tmp_path / "dev-0") as device, Running(serial_config(tmp_path, {"dev-0": device})) as daemon:
        wait_for(lambda: ports_open(daemon, "dev-0"), what="the port to be open")
        device.send(b"rubbish\r\n" + b"".join(lines[:200]))
        wait_for(lambda: len(serial_outputs(tmp_path)) >= 200, what="outputs before")
        device.pull()
        wait_for(lambda: not ports_open(daemon, "dev-0"), what="a word on the lost port")
        device.plug()
        wait_for(lambda: ports_open(daemon, "dev-0"), timeout_s=30, what="the port to be open again")
        # The first line after opening may be partial, so it is always discarded.
        device.send(lines[199] + b"".join(lines[200:]))
        wait_for(lambda: len(serial_outputs(tmp_path)) >= 400, what="outputs after")
        daemon.stop()
    assert serial_outputs(tmp_path) == expected
