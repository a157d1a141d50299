"""The doctor: each check with a good and a bad input, and the whole command."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stream_gru.cli import doctor as doctor_model
from stream_gru.cli.doctor import (
    check_bundle,
    check_clock,
    check_config,
    check_engines,
    check_lines,
    check_listen,
    check_memory,
)
from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.folders import check_folder
from stream_gru.connectors.mqtt.broker_check import check_broker
from stream_gru.connectors.sources.serial import SerialSourceConfig, check_serial, serial_ports
from stream_gru.core.checks import Check, State
from stream_gru.core.errors import ConfigError
from stream_gru.model.bundle import load_bundle
from tests.support.brokers import Broker
from tests.support.certificates import Authority
from tests.support.cli import run_command, run_here
from tests.support.fake_daemon import FakeDaemon, serving
from tests.support.network import free_port
from tests.support.paths import BUNDLE
from tests.support.requirements import needs_mosquitto

SINK = '[[sink]]\ntype = "file"\npath = "{}/out.jsonl"\n'
MIB = 1_048_576


def doctor_config(folder: Path, more: str = "", bundle: Path = BUNDLE, listen: str = "127.0.0.1:0") -> Path:
    """A configuration for ``run``, from standard input to a file."""
    path = folder / "run.toml"
    path.write_text(
        f'[run]\nbundle = "{bundle}"\n[metrics]\nlisten = "{listen}"\n'
        f'[[source]]\ntype = "stdin"\nformat = "csv"\n{SINK.format(folder)}{more}'
    )
    return path


def test_a_good_configuration_passes_all_checks(tmp_path: Path) -> None:
    """Everything a daemon needs is checked, and the exit code is 0."""
    done = run_command("doctor", doctor_config(tmp_path), "--json")
    found = json.loads(done.stdout)
    names = [check["name"] for check in found["checks"]]
    assert names == [
        "configuration", "bundle", "engine litert", "engine numpy", f"disk {tmp_path}", "endpoints 127.0.0.1:0",
        "clock", "memory",
    ]  # fmt: skip
    failed = [check for check in found["checks"] if check["state"] == "fail"]
    assert (done.returncode, found["ok"], failed) == (0, True, [])
    assert "µs per step" in next(check["found"] for check in found["checks"] if check["name"] == "engine numpy")


def test_failed_checks_have_advice_and_exit_code_1(tmp_path: Path) -> None:
    """A failure does not stop the other checks."""
    port = free_port()
    more = (
        '[[source]]\ntype = "serial"\nname = "probe"\nport = "/dev/nowhere"\nformat = "csv"\n'
        f'[[broker]]\nurl = "mqtt://127.0.0.1:{port}"\n'
    )
    done = run_here("doctor", doctor_config(tmp_path, more))
    assert done.returncode == 1, done.stdout
    assert "fail  serial /dev/nowhere" in done.stdout
    assert "ls -l /dev/serial/by-id" in done.stdout
    assert "fail  broker broker" in done.stdout
    assert f"127.0.0.1:{port}: Connection refused" in done.stdout
    assert "→ check that the broker is running" in done.stdout
    assert "2 failed" in done.stdout.splitlines()[-1]


def test_without_a_configuration_the_machine_is_checked() -> None:
    """Serial ports, clock and memory, and a bundle if one is named."""
    names = [check["name"] for check in json.loads(run_here("doctor", "--json").stdout)["checks"]]
    assert names == ["serial ports", "clock", "memory"]
    names = [check["name"] for check in json.loads(run_here("doctor", "--bundle", BUNDLE, "--json").stdout)["checks"]]
    assert names[:3] == ["bundle", "engine litert", "engine numpy"]


def test_a_configuration_and_a_bundle_exclude_each_other(tmp_path: Path) -> None:
    """The configuration names its bundle."""
    assert run_here("doctor", doctor_config(tmp_path), "--bundle", BUNDLE).returncode == 2


def test_an_invalid_configuration_fails(tmp_path: Path) -> None:
    """A file that is not TOML, one without [run], and one that names a missing file."""
    path = tmp_path / "run.toml"
    path.write_text("[run\n")
    settings, check = check_config(path)
    assert (settings, check.state) == (None, State.FAIL)
    path.write_text("")
    settings, check = check_config(path)
    assert check.state is State.FAIL
    assert "expected a [run] table" in check.found
    settings, check = check_config(doctor_config(tmp_path, '[control]\ntoken_file = "nowhere"\n'))
    assert settings is not None
    assert check.state is State.FAIL
    assert "nowhere" in check.found


def test_a_damaged_bundle_fails(tmp_path: Path) -> None:
    """A missing bundle or a wrong hash fails the bundle, not the configuration."""
    settings, check = check_config(doctor_config(tmp_path, bundle=tmp_path / "none"))
    assert settings is not None
    assert check.state is State.OK
    assert check_bundle(tmp_path / "none")[1].state is State.FAIL
    copy = tmp_path / "copy.bundle"
    shutil.copytree(BUNDLE, copy)
    assert check_bundle(copy)[1].state is State.OK
    weights = next(copy.glob("*.npz"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    found, check = check_bundle(copy)
    assert (found, check.state) == (None, State.FAIL)


def test_a_missing_engine_fails_only_if_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without litert numpy is used, unless litert is configured."""
    bundle = load_bundle(BUNDLE)

    def load(name: str, _: object) -> object:
        raise ConfigError(f"engine: {name} cannot be loaded")

    monkeypatch.setattr(doctor_model, "load_engine", load)
    states = {wanted: [check.state for check in check_engines(bundle, wanted)] for wanted in ("auto", "litert")}
    assert states == {"auto": [State.WARN, State.FAIL], "litert": [State.FAIL, State.FAIL]}
    wanted = list(check_engines(bundle, "onnx"))[-1]
    assert (wanted.name, wanted.state) == ("engine onnx", State.FAIL)
    monkeypatch.setattr(doctor_model, "find_spec", lambda _: None)
    first = next(iter(check_engines(bundle, "auto")))
    assert first.state is State.WARN
    assert "numpy is used instead" in first.found


def serial_check(port: object, folder: Path = Path("/dev"), proc: Path = Path("/proc")) -> Check:
    """The check of a serial port."""
    return check_serial(SerialSourceConfig(port=str(port), format="csv"), folder, proc)


def test_a_serial_port_must_exist(tmp_path: Path) -> None:
    """A missing port and a file fail, a URL passes; the message lists the existing ports."""
    by_id = tmp_path / "serial" / "by-id"
    by_id.mkdir(parents=True)
    assert serial_ports(tmp_path).found == "none"
    (tmp_path / "ttyUSB0").touch()
    assert serial_ports(tmp_path).found == str(tmp_path / "ttyUSB0")
    (by_id / "usb-probe").symlink_to(tmp_path / "ttyUSB0")
    absent = serial_check(tmp_path / "ttyUSB1", tmp_path)
    assert absent.state is State.FAIL
    assert str(by_id / "usb-probe") in absent.found
    assert "not a serial port" in serial_check(tmp_path / "ttyUSB0", tmp_path).found
    assert serial_check("socket://10.0.0.1:4000", tmp_path).state is State.OK


@pytest.mark.parametrize("port", ["foo://x", "FOO://x", "://x"])
def test_an_unknown_url_scheme_fails(port: str) -> None:
    """A daemon would not start with it."""
    assert serial_check(port).state is State.FAIL


@pytest.fixture
def serial_port() -> Iterator[str]:
    """A device like a serial port that this process alone has open."""
    near, far = os.openpty()
    yield os.ttyname(far)
    os.close(near)
    os.close(far)


def test_an_accessible_serial_port_passes(tmp_path: Path, serial_port: str) -> None:
    """The advice is its stable name."""
    assert serial_check(serial_port, tmp_path).state is State.OK
    by_id = tmp_path / "serial" / "by-id"
    by_id.mkdir(parents=True)
    (by_id / "usb-probe").symlink_to(serial_port)
    assert "usb-probe, which does not change" in serial_check(serial_port, tmp_path).advice
    assert serial_check(by_id / "usb-probe", tmp_path).advice == ""


HOLD = """
import fcntl, sys, termios
port = open(sys.argv[1], "r+b", buffering=0)
if sys.argv[2] == "flock":
    fcntl.flock(port, fcntl.LOCK_EX | fcntl.LOCK_NB)
else:
    fcntl.ioctl(port, termios.TIOCEXCL)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["flock", "exclusive"])
def test_a_serial_port_in_use_is_a_warning(tmp_path: Path, serial_port: str, how: str) -> None:
    """The program is named, whichever name of the port is checked; after its end the check passes."""
    link = tmp_path / "pump"
    link.symlink_to(serial_port)
    line = [sys.executable, "-c", HOLD, serial_port, how]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        for port in (serial_port, link):
            check = serial_check(port)
            assert check.state is State.WARN
            assert f"used by pid {other.pid} (python" in check.found
        other.communicate(timeout=20)
    assert serial_check(serial_port).state is State.OK


def test_a_lock_of_another_user_is_reported(tmp_path: Path, serial_port: str) -> None:
    """Without access to its descriptors the lock table names the process; waiting processes do not count."""
    facts = Path(serial_port).stat()
    place = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "comm").write_text("minicom\n")
    lines = ["1: FLOCK  ADVISORY  WRITE {} {} 0 EOF", "1: -> FLOCK  ADVISORY  WRITE {} {} 0 EOF"]
    for text, found in (
        (lines[0].format(7, place), "used by pid 7 (minicom)"),
        (lines[0].format(8, place), "used by pid 8 (?)"),
        (lines[0].format(0, place), "exists and is accessible"),
        (lines[0].format(7, place + "1"), "exists and is accessible"),
        (lines[1].format(7, place), "exists and is accessible"),
        ("nonsense", "exists and is accessible"),
    ):
        (tmp_path / "locks").write_text(text + "\n")
        assert serial_check(serial_port, tmp_path, tmp_path).found == found
    assert serial_check(serial_port, tmp_path, tmp_path / "none").state is State.OK


@pytest.mark.parametrize(
    ("group", "members", "advice"),
    [
        ("dialout", ["somebody"], "sudo usermod -aG dialout me"),
        ("dialout", ["me"], "log in again"),
        ("root", [], 'GROUP="dialout"'),
        ("root", ["me"], 'GROUP="dialout"'),
        ("", [], "udev rule"),
    ],
)
def test_an_inaccessible_serial_port_fails(
    monkeypatch: pytest.MonkeyPatch, group: str, members: list[str], advice: str
) -> None:
    """The advice depends on the group of the device, and never is to become root."""

    def entry(_: int) -> Any:
        if not group:
            raise KeyError
        return SimpleNamespace(gr_name=group, gr_mem=members)

    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name="me"))
    monkeypatch.setattr("grp.getgrgid", entry)
    check = serial_check("/dev/null")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    assert check.state is State.FAIL
    assert advice in check.advice
    assert "usermod -aG root" not in check.advice


def test_a_group_without_access_is_not_advised(monkeypatch: pytest.MonkeyPatch, serial_port: str) -> None:
    """Joining the group of a device that is closed to it would not help."""
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setattr("grp.getgrgid", lambda _: SimpleNamespace(gr_name="tty", gr_mem=[]))
    Path(serial_port).chmod(0o600)
    assert "usermod" not in serial_check(serial_port).advice


@pytest.mark.parametrize(
    ("says", "state"), [("echo yes", State.OK), ("echo no", State.WARN), ("exit 1", State.OK), (None, State.OK)]
)
def test_an_unsynchronized_clock_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str | None, state: State
) -> None:
    """A clock that was never set is a failure."""
    if says is not None:
        command = tmp_path / "timedatectl"
        command.write_text(f"#!/bin/sh\n{says}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    assert check_clock(1.8e9).state is state
    assert check_clock(0.0).state is State.FAIL


def test_a_folder_needs_space_and_permissions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A missing folder is judged by its parent; a file fails; low disk space is reported."""
    assert check_folder(tmp_path / "a" / "b").state is State.OK
    (tmp_path / "file").touch()
    assert check_folder(tmp_path / "file").state is State.FAIL
    for free, state in ((10 * MIB, State.FAIL), (100 * MIB, State.WARN), (1000 * MIB, State.OK)):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert check_folder(tmp_path).state is state
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "not writable" in check_folder(tmp_path).found


@pytest.mark.parametrize(
    ("available_mib", "limit", "state"),
    [(1000, "max", State.OK), (100, "max", State.WARN), (1000, str(150 * MIB), State.FAIL), (10, "max", State.FAIL)],
)
def test_memory_counts_the_smaller_limit(tmp_path: Path, available_mib: int, limit: str, state: State) -> None:
    """The available memory of the machine, or the rest of the limit of a container."""
    (tmp_path / "meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable:   {available_mib * 1024} kB\n")
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(f"{100 * MIB}\n")
    assert check_memory(tmp_path / "meminfo", tmp_path).state is state
    assert check_memory(tmp_path / "none", tmp_path / "none").state is State.OK


def test_an_address_must_be_free_or_that_of_a_daemon() -> None:
    """Another program on the port is a failure."""
    assert check_listen(f"127.0.0.1:{free_port()}").found == "free"
    with serving(FakeDaemon()) as server:
        check = check_listen(server.address.removeprefix("http://"))
    assert (check.state, check.found) == (State.OK, "in use by a healthy daemon")
    with socket.create_server(("127.0.0.1", 0)) as other:
        thread = threading.Thread(target=lambda: other.accept()[0].close())
        thread.start()
        check = check_listen(f"127.0.0.1:{other.getsockname()[1]}")
        thread.join()
    assert check.state is State.FAIL
    assert "choose another address" in check.advice
    assert check_listen("192.0.2.1:9723").state is State.FAIL


def test_the_table_shows_advice_below_its_row() -> None:
    """Findings and advice share a column, one line each."""
    checks = [Check("a", State.OK, "fine"), Check("long name", State.FAIL, "one\ntwo", "do this\nand that")]
    assert check_lines(checks) == [
        "ok    a          fine",
        "fail  long name  one",
        "                 two",
        "                 → do this",
        "                 → and that",
        "",
        "1 ok, 0 warnings, 1 failed",
    ]


@pytest.fixture
def quiet_server() -> Iterator[int]:
    """A server that accepts connections and closes them without a response."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            server.settimeout(0.05)
            while not stop.is_set():
                try:
                    server.accept()[0].close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        stop.set()
        thread.join()


def states(**keys: Any) -> list[tuple[str, str]]:
    """Name and state of each check of a broker."""
    return [(check.name, str(check.state)) for check in check_broker(BrokerConfig(**keys))]


def test_a_server_that_is_no_broker_fails(quiet_server: int, tmp_path: Path) -> None:
    """No response, an unknown host, and a missing password file."""
    assert states(url=f"mqtt://127.0.0.1:{quiet_server}") == [("broker broker", "fail")]
    assert states(url=f"mqtts://127.0.0.1:{quiet_server}") == [("broker broker TLS", "fail")]
    assert states(url="mqtt://nobody.invalid") == [("broker broker", "fail")]
    assert states(url="mqtt://127.0.0.1", password_file=str(tmp_path / "none")) == [("broker broker", "fail")]


@pytest.mark.servers
@needs_mosquitto
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_the_limits_of_a_broker_are_reported(tmp_path: Path, protocol: str) -> None:
    """A login passes; a small packet size is a warning if the broker reports it."""
    password = tmp_path / "password"
    password.write_text("right")
    password.chmod(0o600)
    with Broker(tmp_path, users={"me": "right"}, max_packet_bytes=2000) as broker:
        url, more = broker.url, {"protocol": protocol, "password_file": str(password)}
        (check,) = check_broker(BrokerConfig(url=url, user="me", **more))  # type: ignore[arg-type]
        assert check.state is (State.WARN if protocol == "5" else State.OK)
        assert ("packets of 2,000 bytes" in check.found) == (protocol == "5")
        (check,) = check_broker(BrokerConfig(url=url, user="you", **more))  # type: ignore[arg-type]
        assert check.state is State.FAIL
        assert "not authori" in check.found.lower()


@pytest.mark.servers
@needs_mosquitto
def test_tls_is_a_separate_check(tmp_path: Path) -> None:
    """Without the certificate authority it fails, with advice."""
    authority = Authority(tmp_path)
    with Broker(tmp_path, tls=(authority.file, *authority.issue("server", "127.0.0.1"))) as broker:
        assert states(url=broker.url, ca_file=str(authority.file)) == [
            ("broker broker TLS", "ok"),
            ("broker broker", "ok"),
        ]
        (check,) = check_broker(BrokerConfig(url=broker.url))
        assert check.state is State.FAIL
        assert "certificate" in check.found
        assert "ca_file" in check.advice
        assert states(url=broker.url, insecure_skip_verify=True)[1] == ("broker broker", "ok")


@pytest.mark.servers
@needs_mosquitto
def test_missing_certificates_have_advice(tmp_path: Path) -> None:
    """The advice names a client certificate, or TLS."""
    authority = Authority(tmp_path)
    tls = (authority.file, *authority.issue("server", "127.0.0.1"))
    with Broker(tmp_path, tls=tls, client_certificates=True) as broker:
        *_, check = check_broker(BrokerConfig(url=broker.url, ca_file=str(authority.file)))
        assert check.state is State.FAIL
        assert "client certificate" in check.advice
        *_, check = check_broker(BrokerConfig(url=broker.url.replace("mqtts", "mqtt")))
        assert check.state is State.FAIL
        assert "mqtts://" in check.advice
        own, key = authority.issue("client")
        known = {"ca_file": str(authority.file), "cert_file": str(own), "key_file": str(key)}
        assert states(url=broker.url, **known)[1] == ("broker broker", "ok")
