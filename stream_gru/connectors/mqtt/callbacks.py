"""What a connection asks of its owner, and what it tells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paho.mqtt.client import Client, MQTTMessage


@dataclass(frozen=True, slots=True)
class Limits:
    """What the broker lets through, as it said when it let us in; MQTT 3.1.1 says nothing."""

    max_packet_bytes: int = 268_435_460
    receive_maximum: int = 65_535
    max_qos: int = 2
    retain: bool = True
    session_expiry_s: int | None = None


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says for us when we are gone without a word; retained.  ``delay_s``: of MQTT 5 only."""

    topic: str
    payload: bytes
    delay_s: int = 10


def _nothing(*_: object) -> None:
    """For what an owner does not want to know."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """Called on the thread of the connection, which alone touches the client; none may wait.

    ``connected(client, session_present)``  the broker has let us in
    ``message(message)``                    a message came
    ``published(mid, refusal)``             the broker has it, or says why it does not want it
    ``subscribed(mid, refusals)``           one text for each filter asked for, empty where granted
    ``unsubscribed(mid)``                   done
    ``turn(client)``                        again and again while connected, and after each `Connection.wake`
    ``wants_input()``                       whether more may be read; while not, the broker has to wait
    """

    connected: Callable[[Client, bool], None] = _nothing
    message: Callable[[MQTTMessage], None] = _nothing
    published: Callable[[int, str], None] = _nothing
    subscribed: Callable[[int, Sequence[str]], None] = _nothing
    unsubscribed: Callable[[int], None] = _nothing
    turn: Callable[[Client], None] = _nothing
    wants_input: Callable[[], bool] = lambda: True
