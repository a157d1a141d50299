"""SIGHUP, with a real broker and a real daemon: what is taken, what is kept, what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from stream_gru.bundle import load_bundle, write_bundle
from tests.support.broker import Broker, Peer, needs_mosquitto
from tests.support.live import BUNDLE, Running, pump_records
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]

CONFIG = """
[run]
bundle = "{bundle}"
engine = "numpy"

[[broker]]
url = "{url}"
client_id = "gateway"

[[source]]
type = "mqtt"
topics = ["sensors/{{stream}}/data"]
format = "json"

[source.input]
time = "ts"
time_unit = "s"

[[sink]]
type = "mqtt"

[metrics]
listen = "127.0.0.1:0"
"""


@dataclass
class System:
    """A running daemon with its broker, a device that speaks to it, and somebody who listens."""

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
        return CONFIG.format(bundle=bundle, url=self.broker.url)

    def send(self, count: int, topic: str = "sensors/dev-0/data") -> list[dict[str, object]]:
        """Send the next records of the device and return what was predicted from them."""
        rows = pump_records(1, 200)["dev-0"][self.sent : self.sent + count]
        before = len(self.predictions())
        self.sent += count
        self.peer.publish(topic, *map(json.dumps, rows))
        wait_for(lambda: len(self.predictions()) >= before + count, what="predictions")
        return self.predictions()[before:]

    def predictions(self) -> list[dict[str, object]]:
        """All that were heard."""
        return [json.loads(m.payload) for m in list(self.peer.heard) if m.topic.endswith("/prediction")]

    def reload(self) -> bool:
        """Send SIGHUP and return whether the configuration was taken."""
        before = {result: self._reloads(result) for result in ("ok", "refused")}
        self.daemon.hang_up()
        done = wait_for(lambda: [one for one, n in before.items() if self._reloads(one) > n], what="the reload")
        assert self.daemon.metric("stream_gru_config_last_reload_successful") == (done == ["ok"])
        return done == ["ok"]

    def _reloads(self, result: str) -> float:
        return self.daemon.metric(f'stream_gru_reloads_total{{result="{result}"}}') or 0.0


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    """A system that has processed a few samples."""
    with running(tmp_path) as one:
        yield one


@contextmanager
def running(folder: Path) -> Iterator[System]:
    """Broker, daemon, device."""
    config = folder / "gateway.toml"
    with Broker(folder) as broker:
        config.write_text(CONFIG.format(bundle=BUNDLE, url=broker.url))
        with Running(config) as daemon, broker.client("peer") as peer:
            one = System(daemon, broker, peer, folder)
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


def test_an_unchanged_configuration_changes_nothing(system: System) -> None:
    """States are kept, connections stay."""
    assert system.reload()
    assert [(row["reset"], row["steps"]) for row in system.send(2)] == [(None, 6), (None, 7)]
    assert system.daemon.text().count("connected (gateway)") == 1


def test_a_mistake_is_not_taken(system: System) -> None:
    """Syntax, keys, bundles, addresses: the old configuration goes on, the log says what is wrong."""
    wrong = {
        "[run\n": "not valid TOML",
        system.text().replace("engine", "engien"): 'did you mean "engine"?',
        system.text(system.folder / "gone.bundle"): "gone.bundle",
        system.text().replace("127.0.0.1:0", f"127.0.0.1:{system.broker.port}"): "cannot be had",
        system.text() + '[control]\ntoken_file = "no.token"\n': "no.token",
    }
    for text, words in wrong.items():
        system.write(text)
        assert not system.reload()
        assert words in system.daemon.text(), words
    assert [(row["reset"], row["steps"]) for row in system.send(2)] == [(None, 6), (None, 7)]
    system.write(system.text())
    assert system.reload()


def test_another_model_resets_every_stream(system: System) -> None:
    """The next sample says so, with the other model's id; back to the first one, it is so again."""
    before = system.send(1)[0]
    system.write(system.text(other_bundle(system.folder)))
    assert system.reload()
    after = system.send(2)
    assert [(row["reset"], row["steps"]) for row in after] == [("model_changed", 1), (None, 2)]
    assert after[0]["model_id"] != before["model_id"]
    assert system.daemon.metric('stream_gru_stream_resets_total{reason="model_changed"}') == 1


def test_topics_are_changed_by_difference(system: System) -> None:
    """A new topic is heard and an old one is not, over the same connection."""
    system.write(system.text().replace('"sensors/{stream}/data"', '"devices/{stream}/data"'))
    assert system.reload()
    assert [row["steps"] for row in system.send(2, "devices/dev-0/data")] == [6, 7]
    messages = 'stream_gru_messages_received_total{source="mqtt"}'
    count = system.daemon.metric(messages)
    system.peer.publish("sensors/dev-0/data", "{}")
    assert [row["steps"] for row in system.send(1, "devices/dev-0/data")] == [8]
    assert system.daemon.metric(messages) == (count or 0) + 1
    assert system.daemon.text().count("connected (gateway)") == 1


def test_sinks_come_and_go(system: System) -> None:
    """A new file gets what comes after; a sink that is taken away gets nothing more."""
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
