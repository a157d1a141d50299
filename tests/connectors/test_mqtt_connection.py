"""What a connection makes of being cut, without a broker."""

from __future__ import annotations

import pytest

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.connectors.mqtt.paho_client import Handlers

BROKER = BrokerConfig(url="mqtt://127.0.0.1:9")


def lose(connection: Connection, *lasted: float) -> None:
    """Connections that the broker cut after so many seconds; 0: an attempt that failed."""
    for seconds in lasted:
        connection.connected = connection._was_cut = seconds > 0
        connection._reason = "" if seconds else "Connection refused"
        connection._lost(seconds)


@pytest.mark.parametrize(
    ("lasted", "told"),
    [
        ([1, 2, 3, 1, 2], True),  # let in again and again: somebody takes our place
        ([1, 2, 3, 1, 2, 1, 2, 1], True),
        ([15, 15, 15, 15, 15, 15], False),  # a broker that is restarted every now and then
        ([1, 2, 3, 1, 0, 2, 3, 1, 1, 0, 1], False),  # it was away in between
        ([1, 2, 3, 1, 60, 2, 3, 1, 1], False),
    ],
)
def test_another_client_is_suspected_only_when_we_are_thrown_out(
    lasted: list[float], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Several times in a row, soon, by a broker that lets us in again at once; said once."""
    lose(Connection(BROKER, "daemon", Handlers()), *lasted)
    assert caplog.text.count("if another client connects as 'daemon'") == told
