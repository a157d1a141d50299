"""How a connection interprets disconnects, without a broker."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from paho.mqtt.client import DisconnectFlags
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.auth import new_client_id
from stream_gru.connectors.mqtt.connection import Connection
from stream_gru.connectors.mqtt.paho_client import Handlers
from stream_gru.connectors.mqtt.reconnect import Backoff, RivalDetector

BROKER = BrokerConfig(url="mqtt://127.0.0.1:9", client_id="daemon")
RIVAL = "another client connects as"


def lose(connection: Connection, *lasted: float) -> None:
    """Connections that the broker closed after so many seconds; 0: a failed attempt."""
    for seconds in lasted:
        connection.connected = connection._was_cut = seconds > 0
        connection._taken_over = False
        connection._reason = "" if seconds else "Connection refused"
        connection._lost(seconds)


def lose_to_another(connection: Connection, *lasted: float) -> None:
    """Connections that lasted so many seconds and ended with "session taken over"."""
    for seconds in lasted:
        connection.connected, connection._reason = True, ""
        code = ReasonCode(PacketTypes.DISCONNECT, "Session taken over")
        connection._on_disconnect(connection._client, None, DisconnectFlags(True), code, None)
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
    assert caplog.text.count(f"most likely {RIVAL} 'daemon'") == logged
    assert caplog.text.count("give each daemon its own client_id in [[broker]]") == logged


def test_a_take_over_is_logged_with_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """The second one, once in ten minutes; a first one may be an earlier connection of the daemon itself."""
    now_s = [0.0]
    connection = Connection(BROKER, "daemon", Handlers(), clock=lambda: now_s[0])
    lose_to_another(connection, 30)
    assert RIVAL not in caplog.text
    lose_to_another(connection, *[30] * 10)
    assert caplog.text.count(RIVAL) == 1
    assert "most likely" not in caplog.text
    assert len(caplog.records) == 2
    now_s[0] = 601.0
    lose_to_another(connection, 30, 30)
    assert caplog.text.count(RIVAL) == 2


def test_a_take_over_does_not_blame_an_output() -> None:
    """What was in flight is not what ended the connection: it is sent again, and never dropped."""
    connection = Connection(BROKER, "daemon", Handlers())
    lose_to_another(connection, 1, 1, 1, 1, 1)
    assert connection.short_connections == 0
    lose(connection, 1)
    assert connection.short_connections == 1


def test_who_made_the_id_decides_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    """An id of the daemon can be in use twice only where its folder was copied."""
    made = new_client_id()
    connection = Connection(BrokerConfig(url="mqtt://127.0.0.1:9", client_id=made), f"{made}-sink", Handlers())
    lose_to_another(connection, 1, 1)
    assert "delete the file client_id in a state_dir that was copied" in caplog.text


def ends(lasted: Sequence[float], *, taken_over: bool = False) -> list[bool]:
    """Whether the id counts as contested after each connection that the broker closed."""
    detector, found = RivalDetector(), []
    for seconds in lasted:
        detector.ended(seconds, taken_over=taken_over, closed=seconds > 0 and not taken_over)
        found.append(detector.contested)
    return found


def test_another_client_is_suspected_until_a_connection_lasts() -> None:
    """The other one pauses for up to a minute, so a connection of two minutes is no longer contested."""
    assert ends([30, 60, 119, 125, 30, 30], taken_over=True) == [False, True, True, False, True, True]
    assert ends([1, 1, 1, 1, 1, 60, 119, 121, 1]) == [*[False] * 4, *[True] * 3, False, False]
    assert ends([1, 1, 1, 1, 1, 0]) == [*[False] * 4, True, False]


def test_pauses_grow_to_a_minute_while_the_id_is_contested() -> None:
    """However long the connections between them last, and whatever the longest pause is else."""
    for longest_s in (0.5, 30.0):
        backoff = Backoff(longest_s, uniform=lambda: 0.0)
        assert backoff.pause_s(3.0) == 0.5
        grown = [backoff.pause_s(30.0, contested=True) for _ in range(9)]
        assert grown[-1] == 60.0
        assert grown == sorted(grown)
        assert backoff.pause_s(150.0) == 0.5
    assert Backoff(300.0, uniform=lambda: 1.0).pause_s(0.0, contested=True) == 0.25
