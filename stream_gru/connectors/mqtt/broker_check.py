"""Checks of an MQTT broker: name, port, TLS, user and password, limits; each step on its own, so that it is named."""

from __future__ import annotations

import secrets
import socket
import ssl
import time
from collections.abc import Iterator

from paho.mqtt.client import Client, ConnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from stream_gru.config.run_schema import BrokerConfig
from stream_gru.connectors.mqtt.auth import credentials, is_tls, tls_context
from stream_gru.core.checks import Check, State
from stream_gru.core.errors import ConfigError

_TIMEOUT_S = 5.0
_SMALL_PACKET_BYTES = 65_536


def check_broker(broker: BrokerConfig) -> Iterator[Check]:
    """Connect as the daemon would, under a name of its own and without a session; the first failure ends it."""
    name = f"broker {broker.name}"
    host, port = broker.host_and_port()
    try:
        user, password = credentials(broker)
        context = tls_context(broker) if is_tls(broker) else None
    except ConfigError as error:
        yield Check(name, State.FAIL, str(error), "correct the [[broker]] table or the file it names")
        return
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as plain:
            handshake = None if context is None else _handshake(name, plain, host, context)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        yield Check(name, State.FAIL, f"{host}:{port}: {reason}", "is the broker running, and url right?")
        return
    if handshake is not None:
        yield handshake
        if handshake.state is State.FAIL:
            return
    yield _log_in(broker, user, password, context)


def _handshake(name: str, plain: socket.socket, host: str, context: ssl.SSLContext) -> Check:
    """Whether both sides agree on TLS."""
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            return Check(f"{name} TLS", State.OK, f"{secure.version()}, {(secure.cipher() or ('?',))[0]}")
    except OSError as error:
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error.strerror or str(error)
        return Check(
            f"{name} TLS", State.FAIL, f"{host}: {reason}", "look at ca_file, cert_file, the port and the clock"
        )


def _log_in(broker: BrokerConfig, user: str | None, password: str | None, context: ssl.SSLContext | None) -> Check:
    """What the broker says to CONNECT."""
    name = f"broker {broker.name}"
    host, port = broker.host_and_port()
    answers: list[tuple[ReasonCode, Properties | None]] = []
    newest = broker.protocol == "5"
    client = Client(
        CallbackAPIVersion.VERSION2,
        f"stream-gru-doctor-{secrets.token_hex(4)}",
        clean_session=None if newest else True,
        protocol=MQTTProtocolVersion.MQTTv5 if newest else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
    )
    if context is not None:
        client.tls_set_context(context)
    client.username_pw_set(user, password)
    client.connect_timeout = _TIMEOUT_S

    def connected(_: Client, __: object, ___: ConnectFlags, code: ReasonCode, properties: Properties | None) -> None:
        answers.append((code, properties))

    client.on_connect = connected
    try:
        if newest:
            client.connect(host, port, clean_start=True)
        else:
            client.connect(host, port)
        end = time.monotonic() + _TIMEOUT_S
        while not answers and time.monotonic() < end and client.loop(0.1) == MQTTErrorCode.MQTT_ERR_SUCCESS:
            pass
        client.disconnect()
    except OSError as error:
        return Check(name, State.FAIL, f"{host}:{port}: {error}", "is this an MQTT broker?")
    finally:
        client._reset_sockets()  # paho keeps its pair of sockets until it is collected
    if not answers:
        other = "want TLS (mqtts://)" if context is None else "want a client certificate (cert_file, key_file)"
        advice = f"does it speak MQTT {broker.protocol}? does it {other}?"
        return Check(name, State.FAIL, f"{host}:{port}: no answer to CONNECT", advice)
    code, properties = answers[0]
    if code.is_failure:
        return Check(name, State.FAIL, f"{host}:{port}: {code}", "look at user, password_file and client_id")
    return _limits(name, f"{host}:{port}, MQTT {broker.protocol}", properties)


def _limits(name: str, place: str, properties: Properties | None) -> Check:
    """What the broker lets through, and what of it will hurt."""
    packet = getattr(properties, "MaximumPacketSize", None)
    qos = getattr(properties, "MaximumQoS", 2)
    retain = bool(getattr(properties, "RetainAvailable", 1))
    found = f"{place}; packets of {f'{packet:,} bytes' if packet else 'any size'}"
    found += f", {getattr(properties, 'ReceiveMaximum', 65_535):,} unconfirmed, QoS up to {qos}"
    found += ", retained messages" if retain else ", no retained messages"
    advice = []
    if packet is not None and packet < _SMALL_PACKET_BYTES:
        advice.append("outputs of long horizons may be too large for it: raise max_packet_size of the broker")
    if qos == 0:
        advice.append("nothing is confirmed at QoS 0, a crash loses messages: raise max_qos of the broker")
    if not retain:
        advice.append("whether the daemon is online cannot be stored: allow retained messages at the broker")
    return Check(name, State.WARN if advice else State.OK, found, "\n".join(advice))
