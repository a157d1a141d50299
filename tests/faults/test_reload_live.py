"""SIGHUP, with a real broker and a real daemon: what is accepted, what is kept, what is rejected."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from stream_gru.model.bundle import load_bundle, write_bundle
from tests.support.brokers import Broker, Peer, Subscriber
from tests.support.daemons import CHANNELS, Running, mqtt_config, pump_records, replayed
from tests.support.paths import BUNDLE
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]


# Bundles without a flatbuffer need it, too.
NUMPY = 'engine = "numpy"'
SECURE_SINK = """
[[broker]]
name = "secure"
url = "mqtts://127.0.0.1:1"
ca_file = "no.pem"

[[sink]]
type = "mqtt"
broker = "secure"
topic = "elsewhere/{stream}"
"""
BAD_PORT = """
[[source]]
type = "serial"
port = "foo://x"
format = "json"
"""


def with_named_broker(text: str) -> str:
    """The configuration as the file's content, with a list of brokers."""
    return text.replace('type = "mqtt"', 'type = "mqtt"\nbroker = "broker"')


@dataclass
class ReloadableDaemon:
    """A running daemon with its broker, a device that publishes, and a subscriber."""

    daemon: Running
    broker: Broker
    peer: Peer
    folder: Path
    sent: int = 0

    def write(self, text: str) -> None:
        """Another configuration."""
        self.daemon.config.write_text(text)

    def text(self, bundle: Path = BUNDLE) -> str:
        """The configuration it was started with, perhaps with another bundle."""
        return mqtt_config(self.broker.url, bundle=bundle, run=NUMPY)

    def send(self, count: int, topic: str = "sensors/dev-0/data") -> list[dict[str, object]]:
        """Send the next records of the device and return their predictions."""
        rows = pump_records(1, 200)["dev-0"][self.sent : self.sent + count]
        before = len(self.predictions())
        self.sent += count
        self.peer.publish(topic, *map(json.dumps, rows))
        wait_for(lambda: len(self.predictions()) >= before + count, what="predictions")
        return self.predictions()[before:]

    def predictions(self) -> list[dict[str, object]]:
        """All received messages."""
        return [json.loads(m.payload) for m in list(self.peer.heard) if m.topic.endswith("/prediction")]

    def reload(self) -> bool:
        """Send SIGHUP and return whether the configuration was accepted."""
        before = {result: self._reloads(result) for result in ("ok", "rejected")}
        self.daemon.hang_up()
        done = wait_for(lambda: [one for one, n in before.items() if self._reloads(one) > n], what="the reload")
        assert self.daemon.metric("stream_gru_config_last_reload_successful") == (done == ["ok"])
        return done == ["ok"]

    def _reloads(self, result: str) -> float:
        return self.daemon.metric(f'stream_gru_reloads_total{{result="{result}"}}') or 0.0


@pytest.fixture
def system(tmp_path: Path) -> Iterator[ReloadableDaemon]:
    """A system that has processed a few samples."""
    with running(tmp_path) as one:
        yield one


@contextmanager
def running(folder: Path) -> Iterator[ReloadableDaemon]:
    """Broker, daemon, device."""
    config = folder / "gateway.toml"
    with Broker(folder) as broker:
        config.write_text(mqtt_config(broker.url, run=NUMPY))
        with Running(config) as daemon, broker.client("peer") as peer:
            one = ReloadableDaemon(daemon, broker, peer, folder)
            peer.subscribe("stream_gru/#")
            wait_for(lambda: daemon.metric('stream_gru_source_connected{source="mqtt"}') == 1, what="the source")
            first = one.send(5)
            assert [row["reset"] for row in first] == ["first_sample", None, None, None, None]
            yield one
            daemon.stop()


def other_bundle(folder: Path) -> Path:
    """The same model but for its weights; the numpy engine runs it."""
    bundle = load_bundle(BUNDLE)
    weights = {name: array * 0.9 for name, array in bundle.weights.items()}
    write_bundle(folder / "other.bundle", replace(bundle.manifest, files={}), weights, {})
    return folder / "other.bundle"


def test_an_unchanged_configuration_changes_nothing(system: ReloadableDaemon) -> None:
    """States are kept, connections stay open."""
    assert system.reload()
    assert [(row["reset"], row["steps"]) for row in system.send(2)] == [(None, 6), (None, 7)]
    assert system.daemon.text().count("connected (gateway-source-mqtt)") == 1


def test_a_mistake_is_not_taken(system: ReloadableDaemon) -> None:
    """Syntax, keys, bundles, addresses, secrets, ports: the old configuration stays, the log names the error."""
    wrong = {
        "[run\n": "not valid TOML",
        system.text().replace("engine", "engien"): 'did you mean "engine"?',
        system.text(system.folder / "gone.bundle"): "gone.bundle",
        system.text().replace("127.0.0.1:0", f"127.0.0.1:{system.broker.port}"): "is not available",
        system.text() + '[control]\ntoken_file = "no.token"\n': "no.token",
        system.text().replace("[[broker]]", '[[broker]]\nuser = "x"\npassword_file = "no.password"'): "no.password",
        with_named_broker(system.text()) + SECURE_SINK: "no.pem",
        system.text() + '[[source]]\ntype = "replay"\nfiles = ["no.csv"]\n': "no.csv",
        system.text().replace("[run]", "[run]\ninterval_level = 0.5") + BAD_PORT: "foo",
        system.text().replace("[source.input]", "max_payload_bytes = 60001\n[source.input]") + BAD_PORT: "foo",
        system.text() + '[[sink]]\ntype = "file"\npath = "nowhere/out.jsonl"\n': "nowhere",
    }
    for text, words in wrong.items():
        system.write(text)
        assert not system.reload()
        assert words in system.daemon.text(), words
    after = system.send(2)
    assert [(row["reset"], row["steps"], row["level"]) for row in after] == [(None, 6, 0.9), (None, 7, 0.9)]
    assert system.daemon.text().count("connected (gateway-source-mqtt)") == 1
    system.write(system.text())
    assert system.reload()


def test_another_model_resets_every_stream(system: ReloadableDaemon) -> None:
    """The next sample shows the reset, with the other model's id; so it does on the way back to the first model."""
    before = system.send(1)[0]
    system.write(system.text(other_bundle(system.folder)))
    assert system.reload()
    after = system.send(2)
    assert [(row["reset"], row["steps"]) for row in after] == [("model_changed", 1), (None, 2)]
    assert after[0]["model_id"] != before["model_id"]
    assert system.daemon.metric('stream_gru_stream_resets_total{reason="model_changed"}') == 1


def test_topics_are_changed_by_difference(system: ReloadableDaemon) -> None:
    """A new topic is subscribed and a removed one is not, over the same connection."""
    system.write(system.text().replace('"sensors/{stream}/data"', '"devices/{stream}/data"'))
    assert system.reload()
    assert [row["steps"] for row in system.send(2, "devices/dev-0/data")] == [6, 7]
    messages = 'stream_gru_messages_received_total{source="mqtt"}'
    count = system.daemon.metric(messages)
    system.peer.publish("sensors/dev-0/data", "{}")
    assert [row["steps"] for row in system.send(1, "devices/dev-0/data")] == [8]
    assert system.daemon.metric(messages) == (count or 0) + 1
    assert system.daemon.text().count("connected (gateway-source-mqtt)") == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('["sensors/{stream}/data"]', '["sensors/{stream}/data", "devices/{stream}/data"]'),
        ("[metrics]", "[limits]\ntotal_hz = 1000000.0\n[metrics]"),
    ],
    ids=["topics", "limits"],
)
def test_a_reload_keeps_the_headers_of_devices(old: str, new: str, tmp_path: Path) -> None:
    """A header received before the reload names the columns of later lines."""
    config, out = tmp_path / "gateway.toml", tmp_path / "out.jsonl"
    names = ("ts", *reversed(CHANNELS))
    lines = [",".join(str(row[name]) for name in names) for row in pump_records(1, 10)["dev-0"]]
    with Broker(tmp_path) as broker:
        text = mqtt_config(broker.url).replace('format = "json"', 'format = "csv"')
        config.write_text(text + f'[[sink]]\ntype = "file"\npath = "{out}"\n')
        with Running(config) as daemon, broker.client("device") as device:
            daemon.wait_for_sources("mqtt")
            device.publish("sensors/dev-0/data", ",".join(names), *lines[:5])
            wait_for(lambda: out.exists() and len(out.read_bytes().splitlines()) == 5, what="the first rows")
            config.write_text(config.read_text().replace(old, new))
            daemon.hang_up()
            wait_for(lambda: daemon.metric('stream_gru_reloads_total{result="ok"}') == 2, what="the reload")
            device.publish("sensors/dev-0/data", *lines[5:])
            wait_for(lambda: len(out.read_bytes().splitlines()) == 10, what="all rows")
            daemon.stop()
    assert sorted(out.read_bytes().splitlines()) == replayed(pump_records(1, 10), tmp_path)


def test_the_first_source_whose_channels_arrive_apart_is_assembled(system: ReloadableDaemon) -> None:
    """A reload adds it: one prediction for each second, not one for each topic."""
    apart = '[[source]]\ntype = "mqtt"\nname = "apart"\ntopics = ["house/{stream}/{channel}"]\nformat = "json"\n'
    system.write(system.text() + apart + '[source.input]\ntime = "ts"\ntime_unit = "s"\n')
    assert system.reload()
    wait_for(lambda: system.daemon.metric('stream_gru_source_connected{source="apart"}') == 1, what="the new source")
    for row in pump_records(1, 5)["dev-0"]:
        for channel in CHANNELS:
            system.peer.publish(f"house/attic/{channel}", json.dumps({"ts": row["ts"], "value": row[channel]}))
    joined = 'stream_gru_records_joined_total{source="apart"}'
    wait_for(lambda: system.daemon.metric(joined) == 20, what="all records")

    def steps() -> list[object]:
        return [row["steps"] for row in system.predictions() if row["stream"] == "attic"]

    wait_for(lambda: len(steps()) >= 5, what="predictions")
    assert steps() == [1, 2, 3, 4, 5]


def test_sinks_come_and_go(system: ReloadableDaemon) -> None:
    """A new file gets later outputs; a removed sink gets no more."""
    out = system.folder / "new.jsonl"
    sink = f'[[sink]]\ntype = "file"\npath = "{out}"\n'
    system.write(system.text() + sink)
    assert system.reload()
    system.send(3)
    wait_for(lambda: out.exists() and len(out.read_text().splitlines()) == 3, what="the new file")
    system.write(system.text())
    assert system.reload()
    system.send(2)
    assert len(out.read_text().splitlines()) == 3


OTHER = """
[[broker]]
name = "other"
url = "{url}"

[[sink]]
type = "mqtt"
broker = "other"
"""


def test_what_waits_in_a_sink_outlives_its_new_table(tmp_path: Path) -> None:
    """A sink gets another table while its broker is down: its queued outputs arrive when the broker is back."""
    (tmp_path / "out").mkdir()
    config = tmp_path / "gateway.toml"
    with Broker(tmp_path) as broker, Broker(tmp_path / "out") as other:
        text = with_named_broker(mqtt_config(broker.url, run=NUMPY))
        text = text.replace('[[sink]]\ntype = "mqtt"\nbroker = "broker"\n', OTHER.format(url=other.url))
        config.write_text(text)
        subscriber = Subscriber(other.port)
        with Running(config) as daemon, broker.client("device") as device:
            wait_for(lambda: daemon.metric('stream_gru_source_connected{source="mqtt"}') == 1, what="the source")
            wait_for(lambda: daemon.metric('stream_gru_sink_connected{sink="mqtt"}') == 1, what="the sink")
            rows = [json.dumps(row) for row in pump_records(1, 60)["dev-0"]]
            other.stop()
            device.publish("sensors/dev-0/data", *rows[:40])
            wait_for(lambda: daemon.metric('stream_gru_sink_queue{sink="mqtt"}') == 40, what="outputs that wait")
            config.write_text(text.replace('broker = "other"\n', 'broker = "other"\nmessage_expiry_s = 60\n'))
            daemon.hang_up()
            wait_for(lambda: daemon.metric('stream_gru_reloads_total{result="ok"}') == 2, what="the reload")
            other.start()
            device.publish("sensors/dev-0/data", *rows[40:])
            wait_for(lambda: len(subscriber.rows) == 60, what="all outputs")
            daemon.stop()
        subscriber.close()


def test_a_full_sink_can_be_removed(tmp_path: Path) -> None:
    """Meanwhile metrics are right; then the inputs that it held back are processed, and no stream was idle."""
    (tmp_path / "out").mkdir()
    config, out = tmp_path / "gateway.toml", tmp_path / "out.jsonl"
    with Broker(tmp_path) as broker, Broker(tmp_path / "out") as other:
        text = with_named_broker(mqtt_config(broker.url, run=NUMPY))
        text = text.replace("[run]", "[run]\nstream_idle_timeout_s = 1.5")
        sink = '[[sink]]\ntype = "mqtt"\nbroker = "broker"\n'
        blocking = OTHER.format(url=other.url) + "queue_size = 20\n"
        file = f'[[sink]]\ntype = "file"\npath = "{out}"\n'
        config.write_text(text.replace(sink, blocking + file))
        with Running(config) as daemon, broker.client("device") as device:
            wait_for(lambda: daemon.metric('stream_gru_source_connected{source="mqtt"}') == 1, what="the source")
            other.stop()
            rows = [json.dumps(row) for row in pump_records(1, 100)["dev-0"]]
            device.publish("sensors/dev-0/data", *rows)
            wait_for(lambda: (daemon.metric('stream_gru_sink_queue{sink="mqtt"}') or 0) >= 20, what="a full queue")
            turn = "stream_gru_loop_last_timestamp_seconds"
            then = daemon.metric(turn) or 0.0
            wait_for(lambda: (daemon.metric(turn) or 0.0) > then + 2, what="signs of life while it waits")
            config.write_text(text.replace(sink, file))
            daemon.hang_up()
            wait_for(lambda: out.exists() and len(out.read_bytes().splitlines()) == 100, what="all outputs")
            assert daemon.metric("stream_gru_stream_timeouts_total") == 0
            daemon.stop()
