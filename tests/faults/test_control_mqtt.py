"""Commands over a real broker."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from stream_gru.config.run_schema import BrokerConfig, ControlConfig
from stream_gru.runtime.control.mqtt import ControlMqtt
from tests.support.brokers import Broker, Peer
from tests.support.fake_daemon import FakeDaemon
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]

TOPIC = "plant/command"
RESET = '{"action": "reset", "stream": "a"}'


@pytest.fixture
def fake() -> Iterator[FakeDaemon]:
    """Return a daemon that executes commands."""
    made = FakeDaemon()
    worker = threading.Thread(target=made.work)
    worker.start()
    yield made
    made.stop.set()
    worker.join()


def control_of(broker: Broker, fake: FakeDaemon, protocol: str = "5") -> ControlMqtt:
    """Return the control of a daemon, not opened."""
    config = BrokerConfig(url=broker.url, client_id="gateway", protocol=protocol, reconnect_max_delay_s=0.2)  # type: ignore[arg-type]
    return ControlMqtt(ControlConfig(mqtt=True, topic=TOPIC), config, fake.commands, fake.refuse)


def until_connected(control: ControlMqtt) -> None:
    """Wait until it is subscribed."""
    wait_for(lambda: control.connected, what="control")


@pytest.fixture(params=["5", "3.1.1"])
def control(request: pytest.FixtureRequest, broker: Broker, fake: FakeDaemon) -> Iterator[ControlMqtt]:
    """Yield a connected client for the commands of that daemon, in both protocol versions."""
    made = control_of(broker, fake, request.param)
    made.open()
    until_connected(made)
    yield made
    made.close()
    made.close()


def first_results(peer: Peer, n: int) -> list[dict[str, Any]]:
    """Return the first ``n`` results."""
    wait_for(lambda: len(peer.heard) >= n, what=f"{n} answers")
    return [json.loads(payload) for payload in peer.payloads()]


def test_a_command_is_executed_and_its_result_published(broker: Broker, fake: FakeDaemon, control: ControlMqtt) -> None:
    """Without a response topic beside the command topic; also for a command that fails."""
    with broker.client() as peer:
        peer.subscribe(f"{TOPIC}/response")
        peer.publish(TOPIC, RESET, '{"action": "pause", "all": true}', '{"action": "resume", "stream": "x"}')
        assert first_results(peer, 3) == [
            {"ok": True, "text": "reset done", "streams": 1},
            {"ok": True, "text": "pause done", "streams": 2},
            {"ok": False, "text": "unknown stream 'x'", "streams": 0},
        ]
    assert fake.done == [("reset", "a"), ("pause", None)]
    assert fake.refused == []


def ask_mqtt(broker: Broker, payload: str, response_topic: str, listen: str) -> MQTTMessage:
    """Return the result of a request of MQTT 5 with a response topic."""
    heard: list[MQTTMessage] = []
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_message = lambda _c, _u, message: heard.append(message)
    client.on_connect = lambda c, *_: c.subscribe(listen, 1)

    def go(asking: Client, *_: object) -> None:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.ResponseTopic = response_topic
        properties.CorrelationData = b"\x00\xff"
        asking.publish(TOPIC, payload, 1, properties=properties)

    client.on_subscribe = go
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    try:
        wait_for(lambda: heard, what="an answer")
        return heard[0]
    finally:
        client.disconnect()
        client.loop_stop()
        client._reset_sockets()


@pytest.mark.parametrize("control", ["5"], indirect=True)
@pytest.mark.parametrize(
    ("wanted", "listen"),
    [("mine/answers", "mine/answers"), (TOPIC, f"{TOPIC}/response"), ("$mine", f"{TOPIC}/response")],
)
def test_the_result_goes_to_the_response_topic(broker: Broker, control: ControlMqtt, wanted: str, listen: str) -> None:
    """With its correlation data, unless the response topic is the command topic or a topic of the broker."""
    message = ask_mqtt(broker, RESET, wanted, listen)
    assert json.loads(message.payload)["ok"] is True
    assert message.topic == listen
    properties: Any = message.properties
    assert properties.CorrelationData == b"\x00\xff"
    assert properties.ContentType == "application/json"


def test_an_invalid_request_gets_an_error(broker: Broker, fake: FakeDaemon, control: ControlMqtt) -> None:
    """It is counted and executes nothing; a far too long one is ignored."""
    nonsense: list[bytes | str] = [b"", b"\xff", "[" * 4000, "{}", "null", "{" + " " * 4096 + "}"]
    nonsense += ['{"action": "pause"}', '{"action": "resume", "stream": "a\\n"}', '{"action": ["reset"], "all": true}']
    with broker.client() as peer:
        peer.subscribe(f"{TOPIC}/response")
        peer.publish(TOPIC, b"x" * 200_000, *nonsense, RESET)
        first_results(peer, len(nonsense) + 1)
        wait_for(lambda: json.loads(peer.payloads()[-1])["ok"], what="the last answer")
        # MQTT 3.1.1 has no option to suppress the first one, so it is answered too.
        found = first_results(peer, len(nonsense) + 1)[-1 - len(nonsense) : -1]
    assert {answer["ok"] for answer in found} == {False}
    assert any("4096 bytes" in answer["text"] for answer in found)
    assert fake.done == [("reset", "a")]
    actions = ["unknown"] * 6 + ["pause", "resume", "unknown"]
    assert fake.refused[-len(nonsense) :] == [
        (action, answer["text"]) for action, answer in zip(actions, found, strict=True)
    ]


def test_a_full_queue_is_an_error(broker: Broker, fake: FakeDaemon, control: ControlMqtt) -> None:
    """Further commands are rejected, and the daemon executes those in the queue later."""
    fake.awake = False
    with broker.client() as peer:
        peer.subscribe(f"{TOPIC}/response")
        peer.publish(TOPIC, *[RESET] * 66)
        assert first_results(peer, 2) == [{"ok": False, "text": "too many commands are waiting", "streams": 0}] * 2
        fake.awake = True
        assert len(first_results(peer, 66)) == 66
    assert len(fake.done) == 64
    assert fake.refused == [("reset", "too many commands are waiting")] * 2


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_stored_command_is_not_executed(broker: Broker, fake: FakeDaemon, protocol: str) -> None:
    """A retained command, and one sent while the daemon was offline, are not executed on any connection."""
    with broker.client() as peer:
        peer.publish(TOPIC, RESET, retain=True)
        peer.subscribe(f"{TOPIC}/response")
        for _ in range(2):
            control = control_of(broker, fake, protocol)
            control.open()
            until_connected(control)
            answered = len(peer.heard)
            peer.publish(TOPIC, '{"action": "pause", "stream": "a"}')
            first_results(peer, answered + 1)
            control.close()
            peer.publish(TOPIC, RESET)
    assert fake.done == [("pause", "a")] * 2
    # MQTT 5 has an option to suppress stored messages.
    refused = [("reset", f"{TOPIC} has a retained message, which is not executed; delete it")] * 2
    assert fake.refused == ([] if protocol == "5" else refused)


def test_it_survives_a_kill_of_the_broker(broker: Broker, fake: FakeDaemon, control: ControlMqtt) -> None:
    """When the broker is back, commands are executed again."""
    broker.kill()
    wait_for(lambda: not control.connected, what="loss")
    broker.start()
    until_connected(control)
    with broker.client() as peer:
        peer.subscribe(f"{TOPIC}/response")
        peer.publish(TOPIC, RESET)
        assert first_results(peer, 1)[0]["ok"]
    assert fake.done == [("reset", "a")]


def test_it_may_be_closed_before_it_was_connected(tmp_path: Path) -> None:
    """Without a broker, opening and closing return at once."""
    control = control_of(Broker(tmp_path), FakeDaemon())
    control.open()
    assert not control.connected
    control.close()
