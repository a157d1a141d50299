"""How a connection interprets disconnects, without a broker."""

from __future__ import annotations

import pytest

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.connectors.mqtt.paho_client import Handlers

BROKER = BrokerConfig(url="mqtt://127.0.0.1:9")


def lose(connection: Connection, *lasted: float) -> None:
    """Connections that the broker closed after so many seconds; 0: a failed attempt."""
    for seconds in lasted:
        connection.connected = connection._was_cut = seconds > 0
        connection._reason = "" if seconds else "Connection refused"
        connection._lost(seconds)


@pytest.mark.parametrize(
    ("lasted", "logged"),
    [
        ([1, 2, 3, 1, 2], True),  # accepted repeatedly: another client takes over the session
        ([1, 2, 3, 1, 2, 1, 2, 1], True),
        ([15, 15, 15, 15, 15, 15], False),  # a broker that restarts now and then
        ([1, 2, 3, 1, 0, 2, 3, 1, 1, 0, 1], False),  # it was down in between
        ([1, 2, 3, 1, 60, 2, 3, 1, 1], False),
    ],
)
def test_another_client_is_suspected_only_after_disconnects_by_the_broker(
    lasted: list[float], logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Several quick disconnects in a row by a broker that accepts each reconnect at once; logged once."""
    lose(Connection(BROKER, "daemon", Handlers()), *lasted)
    assert caplog.text.count("if another client connects as 'daemon'") == logged
