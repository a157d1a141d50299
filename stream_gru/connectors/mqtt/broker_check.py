"""Checks of an MQTT broker: address, TLS, login and limits, each as a separate step."""

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
    """Connect as the daemon does, with another client id and without a session; stop at the first failure."""
    name = f"broker {broker.name}"
    host, port = broker.host_and_port()
    try:
        user, password = credentials(broker)
        context = tls_context(broker) if is_tls(broker) else None
    except ConfigError as error:
        yield Check(name, State.FAIL, str(error), "correct the [[broker]] table or the file that it names")
        return
    try:
        with socket.create_connection((host, port), timeout=_TIMEOUT_S) as plain:
            handshake = None if context is None else _handshake(name, plain, host, context)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        yield Check(
            name, State.FAIL, f"{host}:{port}: {reason}", "check that the broker is running, and url in [[broker]]"
        )
        return
    if handshake is not None:
        yield handshake
        if handshake.state is State.FAIL:
            return
    yield _log_in(broker, user, password, context)


def _handshake(name: str, plain: socket.socket, host: str, context: ssl.SSLContext) -> Check:
    """Check the TLS handshake."""
    try:
        with context.wrap_socket(plain, server_hostname=host) as secure:
            return Check(f"{name} TLS", State.OK, f"{secure.version()}, {(secure.cipher() or ('?',))[0]}")
    except OSError as error:
        reason = getattr(error, "verify_message", "") or getattr(error, "reason", "") or error.strerror or str(error)
        return Check(f"{name} TLS", State.FAIL, f"{host}: {reason}", "check ca_file, cert_file, the port and the clock")


def _log_in(broker: BrokerConfig, user: str | None, password: str | None, context: ssl.SSLContext | None) -> Check:
    """Check the response of the broker to CONNECT."""
    name = f"broker {broker.name}"
    host, port = broker.host_and_port()
    responses: list[tuple[ReasonCode, Properties | None]] = []
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
        responses.append((code, properties))

    client.on_connect = connected
    try:
        if newest:
            client.connect(host, port, clean_start=True)
        else:
            client.connect(host, port)
        end = time.monotonic() + _TIMEOUT_S
        while not responses and time.monotonic() < end and client.loop(0.1) == MQTTErrorCode.MQTT_ERR_SUCCESS:
            pass
        client.disconnect()
    except OSError as error:
        return Check(name, State.FAIL, f"{host}:{port}: {error}", "check that this is an MQTT broker")
    finally:
        client._reset_sockets()  # otherwise paho keeps two sockets until garbage collection
    if not responses:
        other = "TLS (mqtts://)" if context is None else "a client certificate (cert_file, key_file)"
        advice = f"check whether the broker supports MQTT {broker.protocol}, and whether it requires {other}"
        return Check(name, State.FAIL, f"{host}:{port}: no response to CONNECT", advice)
    code, properties = responses[0]
    if code.is_failure:
        return Check(name, State.FAIL, f"{host}:{port}: {code}", "check user, password_file and client_id")
    return _limits(name, f"{host}:{port}, MQTT {broker.protocol}", properties)


def _limits(name: str, place: str, properties: Properties | None) -> Check:
    """Report the limits of the broker, and advise on those that lose or reject outputs."""
    packet = getattr(properties, "MaximumPacketSize", None)
    qos = getattr(properties, "MaximumQoS", 2)
    retain = bool(getattr(properties, "RetainAvailable", 1))
    found = f"{place}; packets of {f'{packet:,} bytes' if packet else 'any size'}"
    found += f", {getattr(properties, 'ReceiveMaximum', 65_535):,} unacknowledged, QoS up to {qos}"
    found += ", retained messages" if retain else ", no retained messages"
    advice = []
    if packet is not None and packet < _SMALL_PACKET_BYTES:
        advice.append("outputs with long horizons may exceed this size: raise max_packet_size of the broker")
    if qos == 0:
        advice.append("QoS 0 has no acknowledgements, so a crash loses messages: raise max_qos of the broker")
    if not retain:
        advice.append("availability needs retained messages: enable them at the broker")
    return Check(name, State.WARN if advice else State.OK, found, "\n".join(advice))
