from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.deploy.support import DEPLOY, server_process
from tests.support.network import free_port
from tests.support.requirements import need
from tests.support.waiting import wait_for

FRAGMENT = DEPLOY / "mosquitto" / "stream-gru.conf"
MESSAGES = 3000


def installed(folder: Path, port: int) -> Path:
    """Debian's main file in ``folder``, which includes the fragment on a free port, and saves every second."""
    (folder / "conf.d").mkdir()
    (folder / "kept").mkdir(mode=0o777)
    fragment = re.sub(r"(?m)^listener 1883", f"listener {port}", FRAGMENT.read_text())
    fragment = re.sub(r"(?m)^autosave_interval \d+", "autosave_interval 1", fragment)
    (folder / "conf.d" / "stream-gru.conf").write_text(fragment)
    main = folder / "mosquitto.conf"
    main.write_text(f"user root\npersistence true\npersistence_location {folder}/kept/\ninclude_dir {folder}/conf.d\n")
    return main


@contextmanager
def client(name: str, port: int, got: list[bytes] | None = None) -> Iterator[mqtt.Client]:
    """A connected client; one with a list has a persistent session, and appends received messages to it."""
    connected: list[object] = []
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.SessionExpiryInterval = 0 if got is None else 3600
    it = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
    it.on_connect = lambda _c, _u, _f, reason, _p: connected.append(reason)
    if got is not None:
        it.on_message = lambda _c, _u, message: got.append(bytes(message.payload))
    it.connect("127.0.0.1", port, clean_start=False, properties=properties)
    it.loop_start()
    try:
        wait_for(lambda: connected, 30.0, "the broker to accept a client")
        yield it
    finally:
        it.disconnect()
        it.loop_stop()


def publish(port: int, n: int) -> list[bytes]:
    """Publish ``n`` messages and wait until the broker has acknowledged each."""
    payloads = [b"%06d" % i + b"x" * 100 for i in range(n)]
    with client("device", port) as device:
        sent = [device.publish("sensors/pump-7/data", payload, qos=1) for payload in payloads]
        for message in sent:
            message.wait_for_publish(30.0)
            assert message.is_published()
    return payloads


def subscribe(port: int) -> None:
    """Create a persistent session, and disconnect."""
    granted: list[object] = []
    with client("daemon", port, []) as daemon:
        daemon.on_subscribe = lambda _c, _u, _m, reasons, _p: granted.append(reasons)
        daemon.subscribe("sensors/+/data", qos=1)
        wait_for(lambda: granted, 30.0, "the subscription")


@pytest.mark.servers
def test_a_backlog_longer_than_the_default_arrives_whole(tmp_path: Path) -> None:
    """3,000 messages for an offline daemon are all queued, in order (a stock broker keeps the first 1,000)."""
    port = free_port()
    with server_process([need("mosquitto"), "-c", installed(tmp_path, port)], port, tmp_path / "log"):
        subscribe(port)
        sent = publish(port, MESSAGES)
        got: list[bytes] = []
        with client("daemon", port, got):
            wait_for(lambda: len(got) >= MESSAGES, 30.0, "every message")
    assert got == sent


@pytest.mark.servers
def test_a_stock_broker_loses_them(tmp_path: Path) -> None:
    """The test above can fail: without the fragment not all messages arrive."""
    port = free_port()
    main = tmp_path / "mosquitto.conf"
    main.write_text(f"user root\nlistener {port} 127.0.0.1\nallow_anonymous true\n")
    with server_process([need("mosquitto"), "-c", main], port, tmp_path / "log"):
        subscribe(port)
        sent = publish(port, MESSAGES)
        got: list[bytes] = []
        with client("daemon", port, got) as daemon:
            wait_for(lambda: len(got) >= 1000, 30.0, "the first 1,000")
            daemon.subscribe("end", qos=1)
            daemon.publish("end", b"end", qos=1)
            wait_for(lambda: got[-1] == b"end", 30.0, "what comes after them")
    assert got[:-1] == sent[:1000]


@pytest.mark.servers
def test_a_broker_that_is_killed_keeps_what_was_saved(tmp_path: Path) -> None:
    """Messages queued for longer than the save interval are still there after kill -9."""
    port, mosquitto = free_port(), need("mosquitto")
    main, saved = installed(tmp_path, port), tmp_path / "kept" / "mosquitto.db"
    with server_process([mosquitto, "-c", main], port, tmp_path / "log") as broker:
        subscribe(port)
        sent = publish(port, 200)
        wait_for(lambda: saved.is_file() and sent[-1] in saved.read_bytes(), 30.0, "the file of the broker")
        broker.kill()
        broker.wait(10.0)
    with server_process([mosquitto, "-c", main], port, tmp_path / "log"):
        got: list[bytes] = []
        with client("daemon", port, got):
            wait_for(lambda: len(got) >= len(sent), 30.0, "every message")
    assert got == sent


@pytest.mark.servers
def test_a_device_that_sends_too_much_is_logged(tmp_path: Path) -> None:
    """The broker announces its maximum packet size, so that a client knows before it sends."""
    port = free_port()
    with server_process([need("mosquitto"), "-c", installed(tmp_path, port)], port, tmp_path / "log"):
        limits: list[int] = []
        it = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="device", protocol=mqtt.MQTTv5)
        it.on_connect = lambda _c, _u, _f, _r, properties: limits.append(properties.MaximumPacketSize)
        it.connect("127.0.0.1", port)
        it.loop_start()
        wait_for(lambda: limits, 30.0, "the broker to accept a client")
        it.disconnect()
        it.loop_stop()
    assert limits == [69632]


@pytest.mark.servers
@pytest.mark.parametrize("protocol", [MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311])
def test_what_is_confirmed_arrives_however_large(protocol: MQTTProtocolVersion, tmp_path: Path) -> None:
    """Up to the announced limit no acknowledged message is dropped; beyond it none is acknowledged."""
    port = free_port()
    got: list[bytes] = []
    granted: list[object] = []
    broker = server_process([need("mosquitto"), "-c", installed(tmp_path, port)], port, tmp_path / "log")
    with broker, client("daemon", port, got) as daemon:
        daemon.on_subscribe = lambda _c, _u, _m, reasons, _p: granted.append(reasons)
        daemon.subscribe("sensors/+/data", qos=1)
        wait_for(lambda: granted, 30.0, "the subscription")
        for size in (65_536, 65_537, 69_500):
            assert outcome(port, protocol, size) == "Success"
            wait_for(lambda: got, 30.0, "the message")
            assert [len(payload) for payload in got] == [size]
            got.clear()
        assert outcome(port, protocol, 69_632) == "cut"


def outcome(port: int, protocol: MQTTProtocolVersion, size: int) -> str:
    """The broker's answer to a payload of so many bytes: a reason, or "cut"."""
    answers: list[str] = []
    it = mqtt.Client(CallbackAPIVersion.VERSION2, "device", protocol=protocol, reconnect_on_failure=False)
    it.on_publish = lambda _c, _u, _m, reason, _p: answers.append(str(reason))
    it.on_disconnect = lambda *_: answers.append("cut")
    it.connect("127.0.0.1", port)
    it.publish("sensors/pump-7/data", b"x" * size, qos=1)
    it.loop_start()
    wait_for(lambda: answers, 30.0, "an answer")
    it.disconnect()
    it.loop_stop()
    return answers[0]


@pytest.mark.servers
@pytest.mark.parametrize("qos", [0, 1])
def test_a_refused_publish_does_not_cut_the_connection(qos: int, tmp_path: Path) -> None:
    """A publish that an access list refuses is answered; the connection stays open (2.0.11 cuts it at limit 0)."""
    port = free_port()
    main, acl = installed(tmp_path, port), tmp_path / "acl"
    acl.write_text("topic write sensors/#\n")
    main.write_text(f"{main.read_text()}acl_file {acl}\n")
    answers: list[str] = []
    lost: list[object] = []
    with server_process([need("mosquitto"), "-c", main], port, tmp_path / "log"), client("device", port) as device:
        device.on_publish = lambda _c, _u, _m, reason, _p: answers.append(str(reason))
        device.on_disconnect = lambda _c, _u, _f, reason, _p: lost.append(reason)
        device.publish("elsewhere", b"refused", qos=qos)
        wait_for(lambda: answers, 30.0, "the answer to what is refused")
        device.publish("sensors/pump-7/data", b"taken", qos=1)
        wait_for(lambda: len(answers) == 2, 30.0, "the answer to what is taken")
        cut = list(lost)
    assert cut == []
    # Without acknowledgement the client gets no refusal.
    assert answers[0] == ("Not authorized" if qos else "Success")
    assert answers[1] in ("Success", "No matching subscribers")


def test_only_this_machine_can_reach_it() -> None:
    """Every listener of the fragment is on loopback, as it accepts any client."""
    listeners = re.findall(r"(?m)^listener (.*)$", FRAGMENT.read_text())
    assert listeners == ["1883 127.0.0.1"]
