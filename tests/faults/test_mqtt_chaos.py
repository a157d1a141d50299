"""Random faults of everything at once; the totals are right afterwards."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.core.types import RawMessage
from tests.faults.test_mqtt_sink import commit_answered, second_outputs, seconds, wait_for_rows
from tests.faults.test_mqtt_sink import open_sink as opened_sink
from tests.faults.test_mqtt_source import expect_nothing, message_numbers, open_source, settle, source_table
from tests.support.brokers import Broker, Peer
from tests.support.requirements import needs_mosquitto
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.servers, needs_mosquitto]


def cut_connection(connection: Connection) -> None:
    """Cut the connection as a restarting router does."""
    sock = connection._client.socket()
    if isinstance(sock, socket.socket):
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # the connection was cut already


def freeze(broker: Broker, rng: random.Random) -> None:
    """Freeze the broker for a while."""
    broker.freeze()
    time.sleep(2.0 * rng.random())
    broker.thaw()


def restart(broker: Broker, peer: Peer) -> None:
    """Restart it cleanly while the test's publisher has nothing in flight: paho reorders resent messages."""
    wait_for(lambda: not peer._client._out_messages)
    broker.stop()
    wait_for(lambda: not peer._client.is_connected())
    broker.start()
    wait_for(peer._client.is_connected)


@pytest.mark.parametrize("seed", [1, 2])
def test_each_message_is_taken_exactly_once_and_in_order(tmp_path: Path, seed: int) -> None:
    """Cut connections, a broker that freezes or restarts, a full queue: while the session lasts and the process lives,
    every message is received once, in order.
    """
    rng = random.Random(seed)
    config = source_table(queue_size=100)
    keys: dict[str, Any] = {"keepalive_s": 1, "receive_maximum": 50, "reconnect_max_delay_s": 0.2}
    with Broker(tmp_path) as broker, broker.client() as peer:
        with open_source(broker, config, **keys) as source:
            faults: list[Callable[[], None]] = [
                lambda: cut_connection(source.connection), lambda: freeze(broker, rng), lambda: restart(broker, peer)
            ]  # fmt: skip
            sent = 0
            got: list[RawMessage] = []
            for _ in range(100):
                action = rng.random()
                if action < 0.5:
                    for _ in range(rng.randrange(1, 40)):
                        peer._client.publish("sensors/p1/data", str(sent), 1)
                        sent += 1
                elif action < 0.88:
                    got += source.poll(rng.randrange(1, 100), 0.01)
                elif action < 0.94:
                    if got:
                        source.commit(got[-1].position)
                else:
                    rng.choice(faults)()

            def all_there() -> bool:
                got.extend(source.poll(1000, 0.05))
                if got:
                    source.commit(got[-1].position)
                return len(got) >= sent

            wait_for(all_there, 60)
            assert message_numbers(got) == list(range(sent))
            assert source.health().sessions_lost == 0
            wait_for(lambda: source.health().connected)
            settle(source)
        with open_source(broker, config) as source:
            expect_nothing(source, peer)


def test_each_output_arrives_and_none_overtakes_another(tmp_path: Path) -> None:
    """At least once, and in order of first delivery, under any fault."""
    rng = random.Random(3)
    keys = {"queue_size": 200}
    with Broker(tmp_path) as broker, broker.client() as peer:
        peer.subscribe("stream_gru/+/prediction")
        with opened_sink(broker, keys, keepalive_s=1, reconnect_max_delay_s=0.2) as sink:
            faults: list[Callable[[], None]] = [lambda: cut_connection(sink.connection), lambda: freeze(broker, rng)]
            written = 0
            for _ in range(60):
                if rng.random() < 0.9:
                    rows = rng.randrange(1, 20)
                    sink.write(second_outputs(rows, written))
                    written += rows
                else:
                    rng.choice(faults)()
            wait_for(lambda: commit_answered(sink), 60)
            wait_for_rows(peer, written)
            assert list(dict.fromkeys(seconds(peer))) == list(range(written))
            assert sink.health().failed == sink.health().dropped == 0
