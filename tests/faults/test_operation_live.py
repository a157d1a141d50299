"""Commands, idle streams, availability and channels that arrive separately, with a real broker and a real daemon."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from tests.support.brokers import Broker, Peer
from tests.support.daemons import BEGIN_S, CHANNELS, Running, pump_records
from tests.support.paths import BUNDLE
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]

TOKEN = "once-upon-a-time"  # noqa: S105
CONFIG = """
[run]
bundle = "{bundle}"
stream_idle_timeout_s = 2.0

[[broker]]
url = "{url}"
client_id = "gateway"

[[source]]
type = "mqtt"
name = "whole"
topics = ["sensors/{{stream}}/data"]
format = "json"

[source.input]
time = "ts"
time_unit = "s"

[[source]]
type = "mqtt"
name = "apart"
topics = ["house/{{stream}}/{{channel}}"]
format = "json"

[source.input]
time = "ts"
time_unit = "s"

[[sink]]
type = "mqtt"

[control]
token_file = "token"
mqtt = true

[metrics]
listen = "127.0.0.1:0"
"""


class OperatedDaemon:
    """A daemon with its broker, a publisher and a subscriber."""

    def __init__(self, daemon: Running, peer: Peer) -> None:
        self.daemon, self.peer = daemon, peer
        self.rows = iter(pump_records(1, 300)["dev-0"])

    def send(self, count: int = 1) -> None:
        """Send the next samples of the one device."""
        self.peer.publish("sensors/dev-0/data", *(json.dumps(next(self.rows)) for _ in range(count)))

    def predictions(self, stream: str = "dev-0") -> list[dict[str, object]]:
        """The predictions of a stream."""
        return [json.loads(one) for one in self.peer.payloads(f"stream_gru/{stream}/prediction")]

    def post(self, action: str, body: object, token: str = TOKEN) -> tuple[int, dict[str, object]]:
        """Send an HTTP request."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            f"{self.daemon.address}/api/v1/{action}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json", "Authorization": f"Bearer {token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, {}

    def streams(self) -> dict[str, str]:
        """Each stream with its status."""
        with urllib.request.urlopen(f"{self.daemon.address}/api/v1/streams", timeout=10) as answer:  # noqa: S310
            return {one["stream"]: one["status"] for one in json.loads(answer.read())}


@pytest.fixture
def system(tmp_path: Path) -> Iterator[OperatedDaemon]:
    """A daemon that has processed three samples."""
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    config = tmp_path / "gateway.toml"
    with Broker(tmp_path) as broker:
        config.write_text(CONFIG.format(bundle=BUNDLE, url=broker.url))
        with Running(config) as daemon, broker.client("peer") as peer:
            peer.subscribe("stream_gru/#")
            for source in ("whole", "apart"):
                wait_for(lambda: daemon.metric(f'stream_gru_source_connected{{source="{source}"}}') == 1)  # noqa: B023
            one = OperatedDaemon(daemon, peer)
            one.send(3)
            wait_for(lambda: len(one.predictions()) == 3)
            yield one
            daemon.stop()


def test_commands_over_http(system: OperatedDaemon) -> None:
    """Reset, pause and resume are answered, executed, counted and visible; without the token nothing happens."""
    assert system.post("reset", {"stream": "dev-0"}, token="guess")[0] == 401  # noqa: S106
    assert system.post("reset", {"stream": "unknown"})[0] == 404
    assert system.post("reset", {"stream": "dev-0"})[0] == 200
    system.send()
    wait_for(lambda: len(system.predictions()) == 4)
    assert [row["reset"] for row in system.predictions()] == ["first_sample", None, None, "command"]
    assert system.post("pause", {"all": True})[0] == 200
    assert system.streams() == {"dev-0": "paused"}
    system.send(2)
    dropped = 'stream_gru_samples_dropped_total{reason="paused",source="whole"}'
    wait_for(lambda: system.daemon.metric(dropped) == 2)
    assert system.post("resume", {"stream": "dev-0"})[0] == 200
    system.send()
    wait_for(lambda: len(system.predictions()) == 5)
    assert system.predictions()[-1]["status"] != "ok"
    assert system.daemon.metric('stream_gru_commands_total{action="reset",result="ok"}') == 1
    assert system.daemon.metric('stream_gru_commands_total{action="reset",result="rejected"}') == 2


def test_commands_over_mqtt(system: OperatedDaemon) -> None:
    """The answer is published on the response topic with the request's correlation data."""
    system.peer.subscribe("answers/mine")
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ResponseTopic, properties.CorrelationData = "answers/mine", b"7"
    command = json.dumps({"action": "reset", "all": True})
    system.peer._client.publish("stream_gru/command", command, qos=1, properties=properties)
    (answer,) = wait_for(lambda: [one for one in system.peer.heard if one.topic == "answers/mine"])
    assert json.loads(answer.payload)["ok"] is True
    assert answer.properties is not None
    assert answer.properties.CorrelationData == b"7"  # type: ignore[attr-defined]
    system.send()
    wait_for(lambda: len(system.predictions()) == 4)
    assert system.predictions()[-1]["reset"] == "command"


def test_commands_on_the_command_line(system: OperatedDaemon, tmp_path: Path) -> None:
    """`stream-gru reset` reads address and token from the configuration."""
    port = system.daemon.address.rpartition(":")[2]
    config = tmp_path / "fixed.toml"
    config.write_text(system.daemon.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
    line = [sys.executable, "-m", "stream_gru", "reset", str(config), "--stream", "dev-0"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "stream dev-0: reset before the next sample\n"), done.stderr


def test_a_stream_that_stops_is_noticed_and_comes_back(system: OperatedDaemon) -> None:
    """Status, metric and availability report it idle; at the next sample all of them report it active."""
    topic = "stream_gru/dev-0/availability"
    assert wait_for(lambda: system.peer.payloads(topic))[-1] == b"online"
    wait_for(lambda: system.daemon.metric("stream_gru_streams_idle") == 1)
    wait_for(lambda: system.peer.payloads(topic)[-1] == b"offline")
    assert system.streams() == {"dev-0": "idle"}
    system.send()
    wait_for(lambda: system.peer.payloads(topic)[-1] == b"online")
    wait_for(lambda: system.daemon.metric("stream_gru_streams_idle") == 0)
    assert system.predictions()[-1]["reset"] is None
    assert system.daemon.metric("stream_gru_stream_timeouts_total") == 1


def test_channels_that_arrive_apart_become_samples(system: OperatedDaemon) -> None:
    """One topic for each channel, in any order: a prediction for each second, equal to that of whole records."""
    rows = pump_records(1, 20)["dev-0"]
    for second, row in enumerate(rows):
        for channel in (*CHANNELS[second % 4 :], *CHANNELS[: second % 4]):
            record = json.dumps({"ts": BEGIN_S + second, "value": row[channel]})
            system.peer.publish(f"house/attic/{channel}", record)
    wait_for(lambda: len(system.predictions("attic")) == 20)
    joined = 'stream_gru_records_joined_total{source="apart"}'
    wait_for(lambda: system.daemon.metric(joined) == 80)
    system.peer.publish("sensors/cellar/data", *map(json.dumps, rows))
    wait_for(lambda: len(system.predictions("cellar")) == 20)
    apart, whole = system.predictions("attic"), system.predictions("cellar")
    assert [row["forecast"] for row in apart] == [row["forecast"] for row in whole]
